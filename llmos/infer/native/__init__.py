"""The native step: a forward pass in C++, compiled for this machine when it is first used.

The sources are read in this order: ``simd.h``, ``panels.h`` (matrices and tiles), ``team.h`` (threads), ``model.h``,
``product.h``, ``attention.h``, ``step.h`` (the pass), ``native.cpp`` (what Python calls). ``build.py`` compiles them,
``bindings.py`` calls them, ``runner.py`` is the engine's runner.
"""
