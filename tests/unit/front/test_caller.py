"""The header with which the front door vouches for a caller."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from llmos.errors import AuthError, ClusterError
from llmos.front.caller import VALID_S, Verifier, place, read_secret, sign
from llmos.layout import Layout
from llmos.openai.caller import Caller

SECRET = b"of the cluster"
WHO = Caller("key-1", "ada", "req_1")


HERE = place("http://127.0.0.1:5", "/v1/completions")


def verify(header: str | None, now: float = 1000.0, where: str = HERE) -> Caller:
    return Verifier(SECRET).verify(header, where, now)


def test_what_was_signed_comes_back() -> None:
    assert Verifier(SECRET).verify(sign(WHO, SECRET, HERE), HERE) == WHO


def test_it_counts_for_a_minute() -> None:
    header = sign(WHO, SECRET, HERE, now=1000.0)
    assert verify(header, now=1000.0 + VALID_S - 1) == WHO
    for moment in (1000.0 + VALID_S + 1, 1000.0 - 2 * VALID_S):
        with pytest.raises(AuthError, match="out of date"):
            verify(header, now=moment)


def test_it_counts_once_and_in_one_place() -> None:
    one, now = Verifier(SECRET), 1000.0
    for _ in range(8):  # longer than what has been used is remembered
        header = sign(WHO, SECRET, HERE, now)
        for where in (place("http://127.0.0.1:6", "/v1/completions"), place("http://127.0.0.1:5", "/v1/models")):
            with pytest.raises(AuthError, match="another place"):
                one.verify(header, where, now)
        assert one.verify(header, HERE, now) == WHO
        for moment in (now, now + VALID_S - 1):
            with pytest.raises(AuthError, match="sent twice"):
                one.verify(header, HERE, moment)
        now += VALID_S
    assert len(one._used | one._before) <= 6
    assert sign(WHO, SECRET, HERE, now) != sign(WHO, SECRET, HERE, now)


def test_nothing_else_is_let_in() -> None:
    good = sign(WHO, SECRET, HERE, now=1000.0)
    claim, _, signature = good.partition(".")
    changed = json.loads(base64.urlsafe_b64decode(claim))
    changed[-1][0] = "key-2"
    forged = base64.urlsafe_b64encode(json.dumps(changed).encode()).decode()
    wrong = (None, "", ".", claim, f"{claim}.", f".{signature}", f"{forged}.{signature}", f"{claim}.{'0' * 64}", "ü.ü")
    for header in (*wrong, good.replace(".", "x"), sign(WHO, b"another secret", HERE, now=1000.0)):
        with pytest.raises(AuthError, match="not signed"):
            verify(header)


def test_a_machine_without_the_secret_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="caller_secret"):
        read_secret(Layout(tmp_path))
