"""The load generator, against a server that answers as it is told."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from llmos.load import Ask, Outcome, drive, paced, percentiles, summary, synthetic
from llmos.load_picture import picture
from llmos.settings import Connection
from tests.unit.cli.conftest import Run
from tests.unit.fake_api import FakeApi


class Server(BaseHTTPRequestHandler):
    """Answers with as many tokens as asked for; prompts of one token get 429, of two an error in the stream."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        length = len(body["prompt"])
        self.send_response(429 if length == 1 else 200)
        self.end_headers()
        events = [": waiting", "data: [DONE]"]
        token = json.dumps({"choices": [{"text": "x"}]})
        events[1:1] = [f"data: {token}"] * body["max_tokens"]
        events[-1:-1] = [f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': body['max_tokens']}})}"]
        if length == 2:
            events = [f"data: {json.dumps({'error': {'code': 'engine'}})}"]
        self.wfile.write("".join(f"{event}\n\n" for event in events).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Not on the terminal."""
        return


@pytest.fixture
def url() -> Iterator[str]:
    Server.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


async def test_each_request_is_sent_at_its_time_and_its_end_is_known(url: str) -> None:
    asks = [Ask(0.0, 5, 3), Ask(0.05, 1, 1), Ask(0.1, 2, 1), Ask(0.15, 4, 1)]
    outcomes = await drive(Connection(url, "k"), "m", asks, seed=1)
    assert [one.error for one in outcomes] == ["", "status 429", "broke off: engine", ""]
    assert [one.tokens for one in outcomes] == [3, 0, 0, 1]
    assert outcomes[0].token_s >= 0 and math.isnan(outcomes[3].token_s)
    first = Server.asked[0]
    assert (first["model"], first["max_tokens"], len(first["prompt"])) == ("m", 3, 5)
    found = summary(outcomes, 10.0, 10.0)
    assert (found["requests"], found["answered"]) == (4, 2)
    assert found["errors"] == {"status 429": 1, "broke off: engine": 1}
    assert found["goodput"]["share"] == 0.5 and found["seconds"] >= 0.15
    assert json.dumps(found)  # no NaN


async def test_who_is_not_there_is_said() -> None:
    (outcome,) = await drive(Connection("http://127.0.0.1:9", "k"), "m", [Ask(0.0, 5, 3)])
    assert outcome.error == "ConnectError"
    assert summary([outcome], None, None)["first_token_s"]["p50"] is None


def test_what_is_made_up_and_how_it_is_paced() -> None:
    asks = synthetic(400, 50, 20, seed=3)
    assert asks == synthetic(400, 50, 20, seed=3) and asks[0].at_s == 0.0
    assert 40 < sum(one.prompt for one in asks) / 400 < 60 and 300 < asks[-1].at_s < 500
    faster = paced(asks, 10.0, 30, 5)
    assert faster[-1].at_s == pytest.approx(39.9) and max(one.prompt for one in faster) == 30
    assert paced(asks, None, 10**6, 10**6) == asks and paced([], 1.0, 1, 1) == []


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentiles(range(1, 101)) == {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    assert percentiles([math.nan, 2.0])["p99"] == 2.0


def test_goodput_is_what_was_promised() -> None:
    def outcome(first_s: float, token_s: float) -> Outcome:
        return Outcome(Ask(0.0, 1, 3), 0.0, first_s, first_s + 2 * token_s, 3)

    outcomes = [outcome(0.1, 0.01), outcome(0.3, 0.01), outcome(0.1, 0.2), Outcome(Ask(0.0, 1, 3), 0.0, error="x")]
    assert [summary(outcomes, *slo)["goodput"]["share"] for slo in ((None, None), (0.2, None), (0.2, 0.1))] == [
        *(0.75, 0.5, 0.25)
    ]


def test_the_picture_shows_each_request() -> None:
    outcomes = [Outcome(Ask(1.0, 1, 3), 0.0, 0.1, 0.3, 3), Outcome(Ask(2.0, 1, 3), 0.0, error="x")]
    drawn = picture(outcomes, "<m>", 0.5, None)
    assert drawn.startswith("<svg") and "&lt;m&gt;" in drawn and drawn.count("h0") == 2 and drawn.count("v-8") == 2


def test_a_trace_is_replayed(
    llmos: Run, api: FakeApi, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 100 * i, "input_length": 4 + i, "output_length": 2} for i in range(5)]
    trace.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    llmos("serve", "coder@1")
    monkeypatch.setenv("LLMOS_URL", url)  # the API itself is in memory
    result = llmos("load", "--trace", str(trace), "--qps", "50", "--requests", "3", "--svg", "out.svg")
    assert result.code == 0, result.err
    assert result.err.startswith("3 requests to coder over 0 s") and "3 of 3 answered" in result.out
    assert sorted(len(one["prompt"]) for one in Server.asked) == [4, 5, 6]
    assert (tmp_path / "out.svg").read_text().startswith("<svg")
    found = json.loads(llmos("load", "--qps", "100", "--requests", "2", "--json", "--prompt", "9").out)
    assert found["answered"] == 2
    trace.write_text("")
    assert "has no requests" in llmos("load", "--trace", str(trace)).err
