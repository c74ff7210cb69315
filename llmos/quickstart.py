"""``llmos quickstart``: the whole road on one machine, from text to answers, with what each part of it said.

Every step leaves its result in the state directory, so a second run continues where the first one stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from llmos import recipe, samples
from llmos.client import Client, OnProgress
from llmos.control.admission import check_there
from llmos.errors import LlmosError, NotFoundError
from llmos.settings import Connection, stored
from llmos.sources import anchored
from llmos.spec import Service, TrainJob, to_dict
from llmos.views import JobView, ModelView

TRAINING_S = 180.0
"""Seconds of training, unless the user says how many steps: with all else, the road takes about five minutes."""
MIN_STEPS = 400
"""However long they take: 400 steps of the recipe reach 0.89 of what gzip needs, 292 in a trial 0.91."""
PROMPT = "def fibonacci(n):"
QUESTION = "Write a function that adds two numbers."
SEEDS = range(4)
SAMPLE_TOKENS = 64

Report = Callable[[str], None]
Watching = Callable[[], AbstractContextManager[OnProgress]]


def main(
    state_dir: Path,
    address: str | None,
    port: int | None,
    data: Sequence[str] | None,
    steps: int | None,
    report: Report,
    watching: Watching,
) -> None:
    """Walk the road; ``watching`` shows a job's progress. The last line on stdout is one JSON object: the figures."""
    from llmos.control.ray import head

    began, was_up = time.monotonic(), head.is_up(state_dir)

    def stage(text: str) -> None:
        report(f"[{time.monotonic() - began:3.0f} s] {text}")

    paths = tuple(data or recipe.standard_library())
    for path in _spec(paths, steps or 1).data.mixture[0].path:
        check_there(path, "--data", "text to train on")
    try:
        cluster = head.up(state_dir, address, port, stage)
        stage(f"the cluster is up: {cluster['url']}")
        with Client.of(_connection(cluster["url"], state_dir)) as client:
            job = _train(client, paths, steps, stage, watching)
            found = _answer(client, job, stage)
            _farewell(client, job, found, time.monotonic() - began, report)
    except LlmosError:
        if not was_up and head.is_up(state_dir):
            report("the cluster stays up, to look into it; `llmos down` ends it")
        raise
    except KeyboardInterrupt:
        if was_up:
            report("interrupted; the cluster and its jobs go on. `llmos quickstart` goes on too, `llmos down` ends all")
        else:
            report(f"interrupted; what is done stays in {state_dir}. `llmos quickstart` goes on from there")
            if head.is_up(state_dir):
                head.down(state_dir, report)
        raise


def _connection(url: str, state_dir: Path) -> Connection:
    """To this cluster, with the key that ``up`` stored: one from the environment may be for another."""
    connection = stored(state_dir)
    assert connection is not None and connection.url == url
    return connection


def _train(client: Client, data: Sequence[str], steps: int | None, report: Report, watching: Watching) -> JobView:
    """The job of the recipe: a finished one whose model is still there, one that goes on, or a new one."""
    job = _earlier(client, _spec(data, steps or 1), steps)
    if job is not None and job.final:
        report(f"{job.model} has been trained already, by job {job.id}")
        return job
    if job is None:
        spec = _spec(data, steps or _affordable_steps(_spec(data, 1)))
        job = client.submit(spec)
        report(f"job {job.id}: {spec.steps} steps on {spec.placed_mesh.size} workers")
    else:
        report(f"going on with job {job.id}")
    _make_room(client, recipe.NAME)
    with watching() as watch:
        job = client.wait(job.id, on_progress=watch)
    if not job.succeeded:
        raise LlmosError(f"job {job.id} {job.phase}: {job.reason}", hint=f"see `llmos logs {job.id}`")
    return job


def _spec(data: Sequence[str], steps: int) -> TrainJob:
    spec = anchored(recipe.stdlib_coder(data, steps), Path.cwd())
    assert isinstance(spec, TrainJob)
    return spec


def _affordable_steps(spec: TrainJob) -> int:
    """As many steps as this machine does in TRAINING_S. The learning rate's way down needs to know them beforehand."""
    from llmos.train.speed import step_seconds

    return max(MIN_STEPS, int(TRAINING_S / step_seconds(spec)))


def _earlier(client: Client, spec: TrainJob, steps: int | None) -> JobView | None:
    """The newest job like ``spec`` that goes on or left its model, with ``steps`` steps, or (None) with any number."""
    wanted = to_dict(spec)
    for job in client.jobs():
        given = {"tenant": job.spec["tenant"]} if "tenant" in job.spec else {}  # filled in when it was submitted
        alike = job.spec == {**wanted, **given, "steps": steps or job.steps}
        if alike and (not job.final or (job.succeeded and _exists(client, job.model))):
            return job
    return None


def _make_room(client: Client, service: str) -> None:
    """Stop serving an older version of the model: on a small machine its replica holds a core the job needs."""
    if any(one.name == service for one in client.services()):
        client.remove_service(service)


def _exists(client: Client, ref: str | None) -> bool:
    try:
        return ref is not None and bool(client.model(ref))
    except NotFoundError:
        return False


def _answer(client: Client, job: JobView, report: Report) -> list[tuple[str, str]]:
    """Serve the model of ``job`` and ask it something. Returns (prompt, completion) of many samples."""
    report(f"registered {job.model}; serving it")
    client.serve(Service(name=recipe.NAME, model=str(job.model)))
    client.wait_service(recipe.NAME)
    report("it answers")
    _ask(client, recipe.NAME)
    report(f"sampling {len(samples.PROMPTS)} prompts, {len(SEEDS)} seeds each")
    return _sample(client, recipe.NAME)


def _ask(client: Client, model: str) -> None:
    """Stream a completion and a chat turn with the ``openai`` package's own client."""
    openai = client.openai()
    print(f"\n{PROMPT}", end="", flush=True)
    for chunk in openai.completions.create(model=model, prompt=PROMPT, max_tokens=96, stream=True, **samples.SAMPLING):
        print(chunk.choices[0].text if chunk.choices else "", end="", flush=True)
    print(f"\n\n> {QUESTION}")
    turns: Any = [{"role": "user", "content": QUESTION}]
    for part in openai.chat.completions.create(
        model=model, messages=turns, max_tokens=48, stream=True, **samples.SAMPLING
    ):
        print((part.choices[0].delta.content or "") if part.choices else "", end="", flush=True)
    print("\n", flush=True)


def _sample(client: Client, model: str) -> list[tuple[str, str]]:
    """(prompt, completion up to its last full line) of every prompt with every seed."""

    def one(asked: tuple[str, int]) -> tuple[str, str]:
        prompt, seed = asked
        options = {"seed": seed, "max_tokens": SAMPLE_TOKENS, **samples.SAMPLING}
        return prompt, samples.cut(client.complete(model, prompt, **options))

    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(one, [(prompt, seed) for prompt in samples.PROMPTS for seed in SEEDS]))


def _figures(job: JobView, model: ModelView, found: list[tuple[str, str]], total_s: float) -> dict[str, Any]:
    metrics = model["lineage"]["metrics"]
    assert job.started_at is not None and job.ended_at is not None
    return {
        "train_s": round(metrics.get("train_s") or job.ended_at - job.started_at, 1),
        "total_s": round(total_s, 1),
        "bits_per_byte": round(metrics["bits_per_byte"], 4),
        "unigram_bits": round(metrics["unigram_bits"], 4),
        "gzip_bits": round(metrics["gzip_bits"], 4),
        "parsed": sum(samples.parses(prompt, text) for prompt, text in found),
        "of": len(found),
    }


def _farewell(client: Client, job: JobView, found: list[tuple[str, str]], total_s: float, report: Report) -> None:
    """Say how good the model is, and what to try next. The last line on stdout is the figures."""
    figures = _figures(job, client.model(str(job.model)), found, total_s)
    repeated = max(samples.most_repeated(text) for _, text in found)
    url, key = client.connection.url, client.connection.key
    share = figures["bits_per_byte"] / figures["gzip_bits"]
    report(f"held-out text: {figures['bits_per_byte']} bits per byte, {share:.2f} of what `gzip -9` needs")
    report(f"{figures['parsed']} of {figures['of']} samples are Python; no line more than {repeated} times")
    report(f"\nthe front door: {url}   an API key: {key}\n")
    report(f"  curl {url}/v1/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\")
    report(f'    -d \'{{"model": "{recipe.NAME}", "prompt": "def main():", "max_tokens": 64}}\'')
    report("  llmos status        what runs\n  llmos down          end it all")
    print(json.dumps(figures), flush=True)
