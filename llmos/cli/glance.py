"""`llmos status` with what Python brings along: loading httpx and Typer takes longer than asking and showing."""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from llmos.cli.overview import overview
from llmos.cli.text import say
from llmos.settings import Connection, connection

TIMEOUT_S = 5.0
"""For longer than that, the client may try in its own way."""


def shown() -> bool:
    """Show the status of the cluster that the environment or ``client.json`` names, if it answers at once."""
    view = asked(connection())
    if view is not None:
        say(overview(view))
    return view is not None


def asked(cluster: Connection) -> dict[str, Any] | None:
    """The answer of ``GET /status``. None if there is none, for whatever reason, and for other machines than this one:
    certificates, proxies, repetition and errors are the client's."""
    at = urlsplit(cluster.url)
    if at.scheme != "http" or not cluster.loopback:
        return None
    link = HTTPConnection(str(at.hostname), at.port, timeout=TIMEOUT_S)
    try:
        link.request("GET", f"{at.path}/api/v1/status", headers={"Authorization": f"Bearer {cluster.key}"})
        answer = link.getresponse()
        view = json.loads(answer.read()) if answer.status == 200 else None
    except (OSError, ValueError, HTTPException):
        return None
    finally:
        link.close()
    return view if isinstance(view, dict) else None
