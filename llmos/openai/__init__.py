"""OpenAI's HTTP API: what requests and answers look like on the wire. Nothing here knows Ray, torch or an engine."""
