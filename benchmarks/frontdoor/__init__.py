"""The front door: what it adds to a request, and how others do, on this machine."""
