"""Tests on one local Ray cluster. A package, so that its cluster ends with these tests, not with the session."""
