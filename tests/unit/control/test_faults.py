"""What goes wrong around the control module: paths, files and settings that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos.control.store import Store
from llmos.errors import DataError, LlmosError, UsageError
from llmos.layout import Layout
from llmos.settings import Connection, save_connection, stored
from llmos.spec import parse
from tests.unit.control.world import World


def test_paths_that_the_system_refuses_are_said(world: World) -> None:
    with pytest.raises(DataError, match="File name too long"):
        world.registry.import_model("m", "/tmp/" + "a" * 300)
    with pytest.raises(DataError, match="File name too long"):
        world.registry.export(world.trained(), "/tmp/" + "a" * 300)


def test_every_change_of_a_service_is_an_event(world: World) -> None:
    world.trained()
    for size in (1, 2, 3):
        world.control.put_service("s", {"kind": "Service", "name": "s", "model": "coder", "max_batch": size})
    assert [event["what"] for event in world.store.events.of("service", "s")] == ["created", "changed", "changed"]


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.database.write_bytes(b"not a database at all" * 100)
    with pytest.raises(LlmosError, match=r"control\.db"):
        Store(layout)


def test_the_stored_connection_is_that_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_API_KEY", "llmos_of_another_cluster")
    save_connection(Connection("http://127.0.0.1:8000", "llmos_ours"), tmp_path)
    found = stored(tmp_path)
    assert found is not None and (found.url, found.key) == ("http://127.0.0.1:8000", "llmos_ours")
    assert stored(tmp_path / "nowhere") is None


def test_a_service_needs_room_for_a_replica() -> None:
    with pytest.raises(UsageError, match=r"`replicas\.max`"):
        parse({"kind": "Service", "name": "s", "model": "coder@1", "replicas": {"min": 0, "max": 0}})
