"""Which rank does what, and how ranks agree."""
