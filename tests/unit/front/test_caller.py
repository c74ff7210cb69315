"""The header with which the front door vouches for a caller."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from llmos.errors import AuthError, ClusterError
from llmos.front.caller import VALID_S, read_secret, sign, verify
from llmos.layout import Layout
from llmos.openai.caller import Caller

SECRET = b"of the cluster"
WHO = Caller("key-1", "ada", "req_1")


def test_what_was_signed_comes_back() -> None:
    assert verify(sign(WHO, SECRET), SECRET) == WHO


def test_it_counts_for_a_minute() -> None:
    header = sign(WHO, SECRET, now=1000.0)
    assert verify(header, SECRET, now=1000.0 + VALID_S - 1) == WHO
    for moment in (1000.0 + VALID_S + 1, 1000.0 - 2 * VALID_S):
        with pytest.raises(AuthError, match="out of date"):
            verify(header, SECRET, now=moment)


def test_nothing_else_is_let_in() -> None:
    good = sign(WHO, SECRET, now=1000.0)
    claim, _, signature = good.partition(".")
    changed = json.loads(base64.urlsafe_b64decode(claim))
    changed[1]["key"] = "key-2"
    forged = base64.urlsafe_b64encode(json.dumps(changed).encode()).decode()
    wrong = (None, "", ".", claim, f"{claim}.", f".{signature}", f"{forged}.{signature}", f"{claim}.{'0' * 64}", "ü.ü")
    for header in (*wrong, good.replace(".", "x"), sign(WHO, b"another secret", now=1000.0)):
        with pytest.raises(AuthError, match="not signed"):
            verify(header, SECRET, now=1000.0)


def test_a_machine_without_the_secret_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="caller_secret"):
        read_secret(Layout(tmp_path))
