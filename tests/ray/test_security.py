"""Who may do what on a real cluster."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import httpx
import pytest
from openai import AuthenticationError

import llmos
from llmos.control.known_keys import KEY_FRESH_S
from llmos.errors import AuthError, ForbiddenError
from llmos.files import read_json
from llmos.settings import state_dir
from tests.support import LLMOS, free_port

OPEN = [("GET", "/healthz")]
OURS = [("GET", path) for path in ("/readyz", "/metrics", "/v1/models", "/v1/models/x", "/api/v1/openapi.json")]
NOTHING = [("GET", "/"), ("GET", "/-/routes"), ("POST", "/api/v1/nothing")]
ASKED = [("POST", f"/v1/{path}") for path in ("completions", "chat/completions")]


@pytest.mark.parametrize("key", [None, "", "Bearer x", "Bearer llmos_aaaaaaaa_" + "a" * 52, "Basic eDp5"])
def test_every_route_asks_for_a_key(cluster: llmos.Client, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": key}
    document = httpx.get(
        f"{cluster.connection.url}/api/v1/openapi.json", headers={"Authorization": f"Bearer {cluster.connection.key}"}
    ).json()
    documented = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    assert len(documented) >= 18
    with httpx.Client(base_url=cluster.connection.url) as http:
        for method, path in [*documented, *OURS, *ASKED, *NOTHING]:
            answer = http.request(method, path.replace("{", "").replace("}", ""), headers=headers)
            expected = (401, 404) if (method, path) in NOTHING else (401,)
            assert answer.status_code in expected, (method, path, answer.status_code, answer.text)
        for method, path in OPEN:
            assert http.request(method, path, headers=headers).status_code == 200


def test_a_key_for_text_cannot_submit_and_a_revoked_one_nothing(cluster: llmos.Client) -> None:
    made = cluster.create_key("reader", scopes=("infer",))
    with llmos.connect(cluster.connection.url, made.secret) as reader, reader.openai() as openai:
        assert openai.models.list().data == []
        with pytest.raises(ForbiddenError):
            reader.jobs()
        cluster.revoke_key(made.id)
        with pytest.raises(AuthError):
            reader.jobs()
        time.sleep(KEY_FRESH_S)
        with pytest.raises(AuthenticationError):
            openai.models.list()


def test_ray_itself_refuses_who_has_another_token(
    cluster: llmos.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = state_dir(None) / "ray_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert (state_dir(None) / "client.json").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    address = str(read_json(state_dir(None) / "cluster.json")["address"])
    command = [LLMOS, "up", "--address", address, "--port", str(free_port()), "--state-dir", tmp_path / "state"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"cannot join the Ray cluster at `{address}`" in done.stderr
    assert "its token" in done.stderr and "Traceback" not in done.stderr
