"""``llmos tenants``: the teams that share the cluster, and what is theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.cli.limits import NONE, Concurrency, RequestsPerMinute, TokensPerMinute, limit_changes
from llmos.cli.output import Format, Output, client, columns, note, say, say_json
from llmos.errors import UsageError

if TYPE_CHECKING:
    from llmos.views import TenantView

app = typer.Typer()
tenants = typer.Typer(help="List, create, change and remove tenants.", invoke_without_command=True)
app.add_typer(tenants, name="tenants", rich_help_panel="Tenants and keys")

_QUOTA = ("cpus", "gpus", "memory")
"""Amounts of other resources are written as `custom.NAME=AMOUNT`."""

Name = Annotated[str, typer.Argument(metavar="NAME")]
Parent = Annotated[str | None, typer.Option("--parent", metavar="TENANT", help="the tenant that it is a part of")]
Share = Annotated[float | None, typer.Option("--share", help="its weight beside its siblings; 1 unless given")]
Borrow = Annotated[
    str | None,
    typer.Option("--borrow-limit", metavar="FRACTION", help="how far it may go beyond its own part: 0.5 is half of it"),
]
Quota = Annotated[
    str | None,
    typer.Option("--quota", metavar="AMOUNTS", help="the most that it may hold at once, as in gpus=16,memory=1TiB"),
]
Budget = Annotated[str | None, typer.Option("--budget", metavar="GPU_HOURS", help="what it may use in all")]


@tenants.callback()
def _list_by_default(context: typer.Context, output: Output = Format.TABLE) -> None:
    if context.invoked_subcommand is None:
        list_tenants(output)


@tenants.command("list")
def list_tenants(output: Output = Format.TABLE) -> None:
    """List the tenants: their limits, what runs and waits, and what they have used."""
    found = client().tenants()
    if output is Format.JSON:
        return say_json(found)
    say(_table(found))


@tenants.command("create")
def create_tenant(
    name: Name,
    parent: Parent = None,
    share: Share = None,
    borrow_limit: Borrow = None,
    quota: Quota = None,
    budget: Budget = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    concurrency: Concurrency = None,
    output: Output = Format.TABLE,
) -> None:
    """Create a tenant. From a file: `llmos submit FILE` with `kind: Tenant`."""
    changes = _changes(parent, share, borrow_limit, quota, budget)
    limits = _given(limit_changes(requests_per_minute, tokens_per_minute, concurrency))
    spec = {"kind": "Tenant", "name": name, **_given(changes), **({"limits": limits} if limits else {})}
    view = client().put_tenant(spec, new=True)
    if output is Format.JSON:
        return say_json(view)
    note(f"tenant {view.name} is there; make a key for it with `llmos keys create NAME --tenant {view.name}`")


@tenants.command("set")
def set_tenant(
    name: Name,
    parent: Parent = None,
    share: Share = None,
    borrow_limit: Borrow = None,
    quota: Quota = None,
    budget: Budget = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    concurrency: Concurrency = None,
    output: Output = Format.TABLE,
) -> None:
    """Change a tenant; what is left out stays, and `none` takes a limit (or the parent) away."""
    changes = _changes(parent, share, borrow_limit, quota, budget)
    limits = limit_changes(requests_per_minute, tokens_per_minute, concurrency)
    if not (changes or limits):
        raise UsageError("nothing to change: expected at least one option", hint="see `llmos tenants set --help`")
    cluster = client()
    before = cluster.tenant(name).spec
    changes |= {"limits": _given({**(before.get("limits") or {}), **limits})} if limits else {}
    kept = {field: value for field, value in before.items() if field not in changes}
    view = cluster.put_tenant({**kept, **_given(changes)}, new=False)
    if output is Format.JSON:
        return say_json(view)
    say(_table([view]))


@tenants.command("remove")
def remove_tenant(names: Annotated[list[str], typer.Argument(metavar="NAME")]) -> None:
    """Forget tenants that no key, no unfinished job and no other tenant names. What their jobs have made stays."""
    cluster = client()
    for name in names:
        cluster.remove_tenant(name)
        note(f"tenant {name} is removed")


def _changes(
    parent: str | None, share: float | None, borrow_limit: str | None, quota: str | None, budget: str | None
) -> dict[str, Any]:
    """What the options ask for, as fields of a Tenant; those that ask to have nothing there are None."""
    changes: dict[str, Any] = {"parent": parent, "share": share, "quota": quota}
    changes |= {"borrow_limit": borrow_limit, "budget": budget}
    given = {field: value for field, value in changes.items() if value is not None}
    return {field: None if value == NONE else _value(field, value) for field, value in given.items()}


def _value(field: str, written: Any) -> Any:
    if field == "quota":
        return _quota(written)
    return _number(f"--{field.replace('_', '-')}", written) if field in ("borrow_limit", "budget") else written


def _quota(text: str) -> dict[str, Any]:
    """``gpus=16,memory=1TiB`` as the fields of a Quota."""
    amounts: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, amount = part.strip().partition("=")
        kind, dot, custom = name.partition(".")
        if not (equals and (name in _QUOTA or (kind == "custom" and dot))):
            expected = ", ".join(f"{name}=AMOUNT" for name in (*_QUOTA, "custom.NAME"))
            raise UsageError(f"`--quota {text[:80]}`: expected some of {expected}, or `{NONE}`", param="--quota")
        if dot:
            amounts.setdefault(kind, {})[custom] = _number("--quota", amount)
        else:
            amounts[name] = amount if name == "memory" else _number("--quota", amount)
    return amounts


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"`{option} {text[:80]}`: expected a number, or `{NONE}`", param=option) from None


def _given(changes: dict[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in changes.items() if value is not None}


def _table(found: list[TenantView]) -> str:
    header = ("NAME", "PARENT", "SHARE", "BORROWS", "QUOTA", "GPUS", "RUNNING", "WAITING", "GPU-HOURS")
    return columns(header, map(_row, found))


def _row(tenant: TenantView) -> tuple[str, ...]:
    amounts = dict(tenant.quota or {})
    amounts |= amounts.pop("custom", {})
    quota = ",".join(f"{name}={_amount(name, value)}" for name, value in amounts.items())
    used = f"{tenant.used_gpu_hours:.4g}"
    return (
        tenant.name,
        tenant.parent or "-",
        f"{tenant.share:g}",
        "-" if tenant.borrow_limit is None else f"{tenant.borrow_limit:g}",
        quota or "-",
        f"{tenant.held['gpus']:g}",
        str(tenant.running),
        str(tenant.waiting),
        used if tenant.budget is None else f"{used} of {tenant.budget:g}",
    )


def _amount(name: str, value: float) -> str:
    return f"{value / 2**30:.4g}GiB" if name == "memory" else f"{value:g}"
