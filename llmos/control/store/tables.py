"""The tables of control.db. Times are seconds since the epoch."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),  # <name>-<number>
    Column("name", String, nullable=False),
    Column("number", Integer, nullable=False),
    Column("spec", JSON, nullable=False),  # as accepted: the version of `model.ref` is pinned
    Column("digest", String, nullable=False),  # of the spec as submitted: what an idempotency key stands for
    Column("idempotency_key", String, unique=True),
    Column("base_model", String),  # `model.ref`, pinned
    Column("tenant", String, nullable=False, server_default="default"),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("phase", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("model", String),  # what it made: name@version
    Column("metrics", JSON, nullable=False),  # the newest row of metrics when an attempt was closed
    # the fields of core.types.Job
    Column("attempt", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("cancelled", Boolean, nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("run_s", Float, nullable=False),
    Column("placement", JSON, nullable=False),
    Column("resumes", Boolean, nullable=False, server_default="0"),
    # what was measured of an elastic job, for core.types.Job: {"goodput": {workers: tokens/s}, "resize_s": seconds}
    Column("measured", JSON, nullable=False, server_default="{}"),
    UniqueConstraint("name", "number"),
    Index("jobs_unfinished", "created_at", sqlite_where=text("ended_at IS NULL")),
    Index("jobs_by_age", "created_at"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("placement", JSON, nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("closed_at", Float),
    Column("failed", Boolean, nullable=False),
    Column("blamed", Boolean, nullable=False, server_default="0"),  # it failed, and its nodes may be the cause
    Column("why", String, nullable=False),  # it ended, or began
)

services = Table(
    "services",
    metadata,
    Column("name", String, primary_key=True),
    Column("spec", JSON, nullable=False),  # the version of `model` is pinned
    Column("model", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("follows", String, nullable=False, server_default=""),  # `name@alias`: the model is what it means
    Column("current", Integer, nullable=False, server_default="0"),  # numbers of revisions
    Column("previous", Integer),  # what a rollback goes to
    Column("canary", Integer),
)

revisions = Table(  # what replicas of a service run or ran
    "revisions",
    metadata,
    Column("service", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("digest", String, nullable=False),
    Column("spec", JSON, nullable=False),  # only what replicas run: everything else has its default
    Column("model", String, nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("service", "digest"),
)

models = Table(
    "models",
    metadata,
    Column("name", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", String, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("parameters", Integer, nullable=False),
    Column("lineage", JSON, nullable=False),
    Column("job", ForeignKey("jobs.id"), unique=True),
    Column("created_at", Float, nullable=False),
    Column("removed_at", Float),  # a version is never given twice, so removed ones stay as rows
)

aliases = Table(  # every meaning that an alias ever had: the newest that is not undone counts
    "aliases",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("model", String, nullable=False),
    Column("alias", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("undone_at", Float),
    Index("aliases_of", "model", "alias"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("tenant", String, nullable=False, server_default="default"),
    Column("limits", JSON, nullable=False, server_default="{}"),  # the fields of spec.Limits that say something
    Column("secret_sha256", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

drained = Table(
    "drained",
    metadata,
    Column("node", String, primary_key=True),
    Column("at", Float, nullable=False),
    Column("why", String, nullable=False),
)

completions = Table(
    "completions",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("id", String, primary_key=True),  # grows with time
    Column("model", String, nullable=False),
    Column("metadata", JSON, nullable=False),  # of its user, as it is now
    Column("completion", JSON, nullable=False),
    Column("messages", JSON, nullable=False),  # what was asked
)

events = Table(
    "events",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("kind", String, nullable=False),  # job, service, model, key, node, tenant
    Column("subject", String, nullable=False),
    Column("what", String, nullable=False),
    Column("why", String, nullable=False),
    Index("events_of", "kind", "subject", "number"),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", String, primary_key=True),
    Column("spec", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    # what its own jobs used, without those of its descendants, as of `used_at`
    Column(
        "used", JSON, nullable=False, server_default="{}"
    ),  # the decayed average: the fields of core.types.Resources
    Column("spent_gpu_s", Float, nullable=False, server_default="0"),
    Column("used_at", Float, nullable=False, server_default="0"),
)

recent_requests = Table(  # each request that was counted lately, so that it is counted once
    "recent_requests",
    metadata,
    Column("id", String, primary_key=True),
    Column("counted_at", Float, nullable=False),
    # the fields of llmos.usage.Record
    Column("day", String, nullable=False),
    Column("key", String, nullable=False),
    Column("tenant", String, nullable=False),
    Column("service", String, nullable=False),
    Column("model", String, nullable=False),
    Column("prompt", Integer, nullable=False),
    Column("cached", Integer, nullable=False),
    Column("completion", Integer, nullable=False),
    Column("status", Integer, nullable=False),
    Column("witness", Integer, nullable=False),
    Index("recent_requests_by_age", "counted_at"),
    sqlite_with_rowid=False,
)

request_usage = Table(  # the sums of all requests there ever were, by the day (UTC) on which they ended
    "request_usage",
    metadata,
    Column("day", String, primary_key=True),
    Column("tenant", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("service", String, primary_key=True),
    Column("model", String, primary_key=True),
    Column("requests", Integer, nullable=False),
    Column("failed", Integer, nullable=False),  # status 500 and above
    Column("abandoned", Integer, nullable=False),  # by their clients, before the end
    Column("prompt", Integer, nullable=False),
    Column("cached", Integer, nullable=False),
    Column("completion", Integer, nullable=False),
)
