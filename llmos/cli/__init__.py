"""The command line: parse, call the client, print. No decisions."""
