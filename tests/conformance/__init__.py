"""What others expect of an OpenAI-compatible server: their own tests and clients against ours. ``make conformance``."""
