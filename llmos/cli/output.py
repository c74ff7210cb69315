"""What commands have in common: the option that says how to show, the cluster to ask, and how to speak (``text``)."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from llmos.cli.text import age as age
from llmos.cli.text import block as block
from llmos.cli.text import clock as clock
from llmos.cli.text import columns as columns
from llmos.cli.text import duration as duration
from llmos.cli.text import fields as fields
from llmos.cli.text import first_line as first_line
from llmos.cli.text import folded as folded
from llmos.cli.text import note as note
from llmos.cli.text import paint as paint
from llmos.cli.text import phase as phase
from llmos.cli.text import plain as plain
from llmos.cli.text import rough as rough
from llmos.cli.text import say as say
from llmos.cli.text import say_json as say_json
from llmos.cli.text import size as size
from llmos.cli.text import yaml_block as yaml_block

if TYPE_CHECKING:
    from llmos.client import Client


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="table for people, json for programs")]


def client() -> Client:
    """The cluster that the environment or ``client.json`` names."""
    _leave_out("httpx._main")  # the command line of httpx loads rich and pygments, a tenth of a second
    from llmos.client import connect

    return connect()


def _leave_out(module: str) -> None:
    """Have whoever would like to import ``module`` do without, as if it were not installed."""
    sys.modules.setdefault(module, None)  # type: ignore[arg-type]  # what the import system takes for "does not exist"
