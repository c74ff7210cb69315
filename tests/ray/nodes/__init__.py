"""Tests on several nodes of this machine, which Ray's autoscaler starts and ends; each has a GPU in name only."""
