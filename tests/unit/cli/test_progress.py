from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from llmos.cli import progress
from llmos.cli.output import columns, duration, plain, size
from llmos.cli.progress import Bar, Lines, Pace, headline
from llmos.views import JobView, MetricsRow
from tests.unit.fake_api import FakeApi, row


def rows(*steps: int) -> list[MetricsRow]:
    return [MetricsRow(row(step)) for step in steps]


def job(**fields: object) -> JobView:
    return JobView(FakeApi().add_job(**fields))  # type: ignore[arg-type]


def test_the_remaining_time_follows_the_newest_rows() -> None:
    pace = Pace()
    assert pace.eta_s(100) is None and pace.summary(100) == ""
    pace.add(rows(1))
    assert pace.eta_s(100) is None and pace.summary(100) == "loss 7.843 · 9,600 tokens/s"
    pace.add(rows(*range(2, 41)))
    assert pace.eta_s(1640) == pytest.approx(160)
    assert pace.summary(1640) == "loss 4.444 · 9,600 tokens/s · ETA 2m 40s"
    assert pace.summary(40) == "loss 4.444 · 9,600 tokens/s"


def test_a_loop_of_ones_own_shows_the_numbers_it_reports() -> None:
    pace = Pace()
    pace.add([MetricsRow({"step": 1, "reward": 1.5, "entropy": None, "length": 20.0, "depth": 3.0, "time_s": 0.0})])
    assert pace.summary(10) == "reward 1.5 · length 20"
    pace.add([MetricsRow({"step": 2, "loss": None, "time_s": 1.0})])
    assert pace.summary(2) == "loss not a number"
    assert repr(pace.rows[-1]) == "<step 2 · loss not a number>"


def test_a_resumed_job_is_not_thought_to_run_backwards() -> None:
    pace = Pace()
    pace.add(rows(10, 20, 30))
    pace.add(rows(20))
    assert pace.eta_s(100) is None
    pace.add(rows(30))
    assert pace.eta_s(100) == pytest.approx(7)


def test_lines_come_with_every_change_and_seldom_in_between(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = Lines()
    lines(job(reason="waits for 2 CPUs"), [])
    lines(job(reason="waits for 2 CPUs"), [])
    for step in range(10, 60, 10):
        now[0] += 4
        lines(job(phase="running", step=step), rows(step))
    lines(job(phase="running", step=90, attempt=2), rows(90))
    assert capsys.readouterr().err.splitlines() == [
        "coder-1: queued (waits for 2 CPUs)",
        "coder-1: running",
        "coder-1: step 20/100 · loss 5.714 · 9,600 tokens/s · ETA 8s",
        "coder-1: step 50/100 · loss 4.000 · 9,600 tokens/s · ETA 5s",
        "coder-1: running, attempt 2",
    ]


def test_the_bar_promises_nothing_before_the_first_step() -> None:
    screen = io.StringIO()
    shown = Progress(
        TextColumn("{task.fields[title]}", markup=False),
        TextColumn("{task.fields[detail]}", markup=False),
        console=Console(file=screen, width=100),
        auto_refresh=False,
    )
    bar = Bar(shown)
    task = shown.tasks[0]
    assert not task.visible
    bar(job(reason="waits for [bold]2[/bold] CPUs"), [])
    assert (task.visible, task.total) == (True, None)
    assert task.fields == {"title": "coder queued (waits for [bold]2[/bold] CPUs)", "detail": ""}
    bar(job(phase="running", step=50, attempt=2), rows(40, 50))
    assert (task.completed, task.total) == (50, 100)
    assert task.fields["title"] == "coder running, attempt 2"
    assert task.fields["detail"] == "step 50/100 · loss 4.000 · 9,600 tokens/s · ETA 5s"


def test_a_reason_cannot_drive_the_terminal() -> None:
    assert headline(job(reason="a\x1b[2Jb\nc")) == "queued (a [2Jb)"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (0, "0s"), (59.4, "59s"), (59.6, "1m 0s"), (3725, "1h 2m"), (90_000, "1d 1h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("amount", "text"), [(0, "0 B"), (999, "999 B"), (9_200_000, "9.2 MB"), (5e15, "5000.0 TB")])
def test_sizes(amount: float, text: str) -> None:
    assert size(amount) == text


def test_columns_align_whatever_their_colour() -> None:
    text = columns(("A", "B", "C"), [("\x1b[32mlong value\x1b[0m", "x", ""), ("s", "longer", "end")])
    assert text == "A           B       C\n\x1b[32mlong value\x1b[0m  x\ns           longer  end"


def test_plain_text_stays() -> None:
    assert plain("größe – 1 €") == "größe – 1 €"
