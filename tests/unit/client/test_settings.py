from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from llmos import settings
from llmos.errors import AuthError, ClusterError, UsageError
from llmos.settings import Connection, connection, normalize_url, save_connection, state_dir

HERE = Connection("http://127.0.0.1:8000", "stored-key")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (settings.ENV_URL, settings.ENV_KEY, settings.ENV_STATE_DIR):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_state_dir_is_the_argument_then_the_environment_then_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_dir() == home / ".llmos"
    monkeypatch.setenv(settings.ENV_STATE_DIR, "~/elsewhere")
    assert state_dir() == home / "elsewhere"
    monkeypatch.chdir(home)
    assert state_dir("here") == home / "here"


def test_a_connection_is_the_argument_then_the_environment_then_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    save_connection(HERE)
    assert connection() == HERE
    monkeypatch.setenv(settings.ENV_KEY, "env-key")
    assert connection() == Connection(HERE.url, "env-key")
    monkeypatch.setenv(settings.ENV_URL, "https://env/")
    assert connection() == Connection("https://env", "env-key")
    assert connection("http://argument:1", "argument-key") == Connection("http://argument:1", "argument-key")


def test_a_stored_key_is_never_sent_to_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    save_connection(HERE)
    monkeypatch.setenv(settings.ENV_URL, "http://127.0.0.1:9999")
    with pytest.raises(AuthError, match="no API key is known for http://127.0.0.1:9999") as caught:
        connection()
    assert "llmos login http://127.0.0.1:9999" in caught.value.hint


def test_without_any_address_the_error_says_how_to_get_one() -> None:
    with pytest.raises(ClusterError, match="no llmos cluster is known") as caught:
        connection()
    assert "llmos up" in caught.value.hint and "llmos login" in caught.value.hint


def test_the_file_is_private_and_replaced_in_one_step(home: Path) -> None:
    path = save_connection(HERE, home / "state")
    inode = path.stat().st_ino
    save_connection(Connection("https://other", "k"), home / "state")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.stat().st_ino != inode
    assert json.loads(path.read_text()) == {"url": "https://other", "key": "k"}
    assert [p.name for p in path.parent.iterdir()] == ["client.json"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"url": "http://a"}', '{"url": 3, "key": "k"}', '{"url": "x", "key": "k"}']
)
def test_a_broken_file_is_named(home: Path, content: str) -> None:
    path = home / ".llmos" / "client.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UsageError, match=str(path)) as caught:
        connection()
    assert "llmos login" in caught.value.hint


def test_an_unusable_stored_file_does_not_matter_when_nothing_is_needed_from_it(home: Path) -> None:
    (home / ".llmos").mkdir()
    (home / ".llmos" / "client.json").write_text("{")
    assert connection("http://a", "k") == Connection("http://a", "k")


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://a", "http://", "", "http://user:pw@host", "http://a:99999", "http://a:b", "http://[::1"],
)
def test_what_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a cluster"):
        normalize_url(url)


def test_addresses_are_compared_in_one_form() -> None:
    assert normalize_url(" http://host:1/prefix/?a#b ") == "http://host:1/prefix"


@pytest.mark.parametrize("key", ["llmos_é", "llmos_a\nb", "llmos_a\x00"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(home: Path, key: str) -> None:
    with pytest.raises(UsageError, match="the API key holds characters that no key has") as caught:
        connection("http://host", key)
    assert key not in str(caught.value)


def test_repr_hides_the_key() -> None:
    assert "stored-key" not in repr(HERE)
    assert HERE.loopback and not Connection("http://host", "k").loopback
