"""``llmos simulate plan``: a scenario of a few nodes and jobs, and what the scheduler makes of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.cli.output import Format, Output, columns, duration, note, say, say_json
from llmos.errors import NotFoundError, SpecError, UsageError

if TYPE_CHECKING:
    from llmos.sim.chronicle import Chronicle, Life

Picture = Annotated[Path | None, typer.Option("--picture", metavar="FILE", help="SVG: who held which GPUs over time")]
Events = Annotated[bool, typer.Option("--events", help="every decision, when it was made and why")]


def simulate_plan(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO", help="YAML: nodes, tenants, jobs, services, faults")],
    picture: Picture = None,
    events: Events = False,
    as_json: Annotated[bool, typer.Option("--json", help="the same as -o json")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Try out what the scheduler would do with a few nodes and jobs, in virtual time."""
    from llmos.sim.chart import chart, looks_of
    from llmos.sim.rehearsal import play
    from llmos.sim.scenario import read

    asked = read(yaml_of(scenario))
    told = play(asked)
    if picture:
        save_picture(picture, chart(told, looks_of(asked, told)))
    if as_json or output is Format.JSON:
        return say_json(_view(told))
    say(columns(_COLUMNS, [(id, *_cells(life)) for id, life in told.lives.items()]))
    if events:
        say("")
        rows = [(_at(at), action.id, action.verb.value, action.why) for at, action in told.events]
        say(columns(("AT", "WHAT", "DID", "WHY"), rows))
    note(f"{asked.title}: {duration(asked.until_s)} of virtual time")


_COLUMNS = ("JOB", "TENANT", "SUBMITTED", "STARTED", "ENDED", "STATE", "WAITED", "STOPPED", "WHY")


def _cells(life: Life) -> tuple[str, ...]:
    """A job that waited is shown with why; one that failed with that."""
    unhappy = life.phase.final and life.phase.value != "succeeded"
    return (
        life.tenant,
        _at(life.submitted_s),
        _at(life.started_s),
        _at(life.ended_s),
        life.phase.value,
        duration(life.waited_s) if life.waited_s else "-",
        str(life.stops or "-"),
        life.end if unhappy else life.why if life.waited_s else "-",
    )


def _at(at_s: float | None) -> str:
    """Hours and minutes from the beginning, as the reasons have them; with seconds where there are any."""
    if at_s is None:
        return "-"
    minutes, seconds = divmod(round(at_s), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}" + (f":{seconds:02}" if seconds else "")


def _view(told: Chronicle) -> dict[str, Any]:
    jobs = [{"job": id, **asdict(life)} for id, life in told.lives.items()]
    events = [
        {"at_s": at, "id": action.id, "verb": action.verb, "nodes": action.nodes, "why": action.why}
        for at, action in told.events
    ]
    return {"jobs": jobs, "events": events}


def save_picture(path: Path, document: str) -> None:
    """Write an SVG. Raises UsageError if it cannot be written."""
    try:
        path.write_text(document)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", param="--picture") from None
    note(f"picture: {path}")


def yaml_of(path: Path) -> object:
    """What the YAML file at ``path`` says. Raises NotFoundError, SpecError."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError([" ".join(str(error).split())], source=str(path)) from None
