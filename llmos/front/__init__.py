"""The front door's data path: which replica answers a request, and its bytes on their way back. Neither Ray nor torch."""
