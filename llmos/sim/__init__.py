"""The digital twin: the very `plan` that runs a real cluster, on a cluster of numbers. Imports core only."""

PLACING = ("random", "bestfit", "fgd", "llmos")
"""Policies that place pods one by one (``openb_replay``)."""
SCHEDULING = ("fifo", "backfill", "srtf", "llmos", "bound")
"""Policies that schedule jobs (``job_replay``); ``bound`` knows how long each job will run."""
