"""The digital twin: the very `plan` that runs a real cluster, on a cluster of numbers. Imports core only."""
