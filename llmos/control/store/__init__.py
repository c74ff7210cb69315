"""The control module's memory: what people asked for and what came of it, in one SQLite file."""

from llmos.control.store.store import Store

__all__ = ["Store"]
