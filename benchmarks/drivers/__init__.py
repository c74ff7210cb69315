"""Scripts that peers' own interpreters run: they call a peer as its documentation says and print step times."""
