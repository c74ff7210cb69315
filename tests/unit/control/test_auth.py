from __future__ import annotations

import hmac
from typing import Any

import pytest

from llmos.control.auth import SCOPES, Auth
from llmos.errors import AuthError, ConflictError, ForbiddenError, NotFoundError, UsageError
from tests.unit.control.world import World


@pytest.fixture
def auth(world: World) -> Auth:
    return Auth(world.store, world.clock)


def bearer(key: dict[str, Any]) -> str:
    return f"Bearer {key['secret']}"


def test_a_key_is_shown_once_and_stored_as_a_hash(auth: Auth, world: World) -> None:
    key = auth.create("laptop", ["infer"])
    prefix, id, secret = key["secret"].split("_")
    assert (prefix, id) == ("llmos", key["id"]) and len(id) == 8 and len(secret) == 52
    assert auth.authenticate(bearer(key)).name == "laptop"
    assert "secret" not in auth.list()[0]
    world.store.close()
    stored = b"".join(path.read_bytes() for path in world.layout.root.glob("control.db*"))
    assert key["id"].encode() in stored and secret.encode() not in stored


@pytest.mark.parametrize("own", SCOPES)
@pytest.mark.parametrize("needed", SCOPES)
def test_scopes_contain_one_another(auth: Auth, own: str, needed: str) -> None:
    header = bearer(auth.create("k", [own]))
    if SCOPES.index(own) >= SCOPES.index(needed):
        assert auth.authorize(header, needed).scopes == (own,)
    else:
        with pytest.raises(ForbiddenError, match=f"expected scope `{needed}`, it has {own}"):
            auth.authorize(header, needed)


def test_a_key_is_compared_in_constant_time_also_when_nobody_has_its_id(
    auth: Auth, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = auth.create("k", ["infer"])
    compared: list[tuple[str, str]] = []
    honest = hmac.compare_digest

    def compare(a: str, b: str) -> bool:
        compared.append((a, b))
        return honest(a, b)

    monkeypatch.setattr("llmos.control.auth.hmac.compare_digest", compare)
    other = "a" * 52
    wrong = ["", f"llmos_{key['id']}_{other}", f"llmos_{'a' * 8}_{other}", "llmos_x_y", "' OR 1=1 --", "é" * 70]
    messages = set()
    for presented in wrong:
        with pytest.raises(AuthError) as error:
            auth.authenticate(f"Bearer {presented}")
        messages.add(str(error.value))
    assert len(compared) == len(wrong) and all(len(a) == len(b) == 64 for a, b in compared)
    assert len(messages) == 1  # nothing tells an unknown id from a wrong secret


@pytest.mark.parametrize("header", [None, "", "Basic x", "Bearer", "llmos_a_b", "Bearer llmos_a_b extra"])
def test_headers_that_hold_no_key(auth: Auth, header: str | None) -> None:
    with pytest.raises(AuthError):
        auth.authenticate(header)


def test_a_revoked_key_is_like_none(auth: Auth) -> None:
    keys = [auth.create("k", ["admin"]) for _ in range(2)]
    auth.revoke(keys[0]["id"])
    auth.revoke(keys[0]["id"])
    with pytest.raises(AuthError, match="not valid"):
        auth.authenticate(bearer(keys[0]))
    assert [key["revoked_at"] is None for key in auth.list()].count(True) == 1
    assert auth.authenticate(bearer(keys[1]))


def test_the_last_admin_stays(auth: Auth) -> None:
    admin, other = auth.create("a", ["infer", "admin"]), auth.create("b", ["submit"])
    with pytest.raises(ConflictError, match=f"key {admin['id']} is the last one with scope `admin`"):
        auth.revoke(admin["id"])
    auth.revoke(other["id"])
    with pytest.raises(NotFoundError, match="no key `nobody`"):
        auth.revoke("nobody")


@pytest.mark.parametrize(
    ("name", "scopes", "message"),
    [
        ("", ["infer"], "name"),
        ("a\nb", ["infer"], "not printable"),
        ("k", [], "found none"),
        ("k", ["root"], "found `root`"),
    ],
)
def test_keys_that_cannot_be(auth: Auth, name: str, scopes: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        auth.create(name, scopes)
    assert auth.list() == []
