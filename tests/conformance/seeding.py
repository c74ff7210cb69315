"""A plugin for OpenAI's tests, loaded by ``pytest -p seeding``: what a test names is there when it begins."""

from __future__ import annotations

import http.client
import os
import urllib.parse


def pytest_runtest_setup() -> None:
    address = urllib.parse.urlsplit(os.environ["LLMOS_SEED"])
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    connection.request("POST", address.path)
    assert connection.getresponse().status == 204
    connection.close()
