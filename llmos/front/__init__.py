"""The front door's data path: who answers a request, and how its bytes come back. Neither Ray nor torch."""
