"""What a run measures of itself, where it writes that down, and what a profile leaves."""

from __future__ import annotations

import gzip
import json
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tensorboardX.proto.event_pb2 import Event

from llmos.core.capacity import ModelShape
from llmos.errors import SpecError
from llmos.parallel.meter import KINDS, Meter, counted_as, part
from llmos.spec import PRESETS
from llmos.train.rank_step import NAMES, RankStep, incoming, outgoing
from llmos.train.telemetry import summary
from llmos.train.tensorboard import tag
from llmos.train.timeline import Lane, activities, draw
from llmos.train.utilization import peak_tokens_per_s
from tests.unit.train.conftest import Trainer

ROWS, LENGTH, BATCH, MICRO = 6, 64, 8, 2


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, short_trainer_in: Callable[[Path], Trainer]) -> Trainer:
    """A run of two pipeline ranks, of which steps 4 and 5 were profiled."""
    return _run(short_trainer_in(tmp_path_factory.mktemp("pipeline")), {"pp": 2}, profile={"start_step": 4, "steps": 2})


def _run(trainer: Trainer, mesh: dict[str, int], **changes: Any) -> Trainer:
    sizes = {"steps": ROWS, "batch_size": BATCH, "micro_batch_size": MICRO, "sequence_length": LENGTH}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        trainer.train(ranks=2, mesh=mesh, **sizes, **changes)
    return trainer


def _attempt(trainer: Trainer) -> Path:
    return trainer.layout.job("tiny").attempt(1).root


def test_a_step_says_what_it_sent_and_waited_for(pipeline: Trainer) -> None:
    rows = pipeline.rows()
    hidden = PRESETS["nano"].hidden_size
    activations = BATCH * LENGTH * hidden * 4  # one rank sends hidden states, the other their gradients
    embeddings = 280 * hidden * 4  # tied: both ends have a part of their gradient
    for row in rows[1:]:
        assert row["sent_pp_bytes"] == pytest.approx(activations, rel=1e-6)
        assert row["sent_gradients_bytes"] == pytest.approx(embeddings, rel=1e-6)
        assert 0 < row["wait_pp_s"] <= row["comm_wait_s"] < 60
        assert 0 < row["bubble"] < 1
        assert row["memory_peak_bytes"] > 1e8 and row["memory_bytes"] > 1e8
        assert row["data_wait_s"] >= 0 and row["step_s"] > row["comm_wait_s"]
        assert row["tokens_per_s"] == pytest.approx(BATCH * LENGTH / row["step_s"])
        assert not {"mfu", "wait_tp_s", "wait_fsdp_s"} & row.keys()  # nothing is made up


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gradients", "tp", "fsdp"])
def test_bytes_of_each_kind_are_what_the_mathematics_says(
    tmp_path: Path, short_trainer_in: Callable[[Path], Trainer], kind: str
) -> None:
    axis = "dp" if kind == "gradients" else kind
    row = _run(short_trainer_in(tmp_path), {axis: 2}).rows()[-1]
    shape = ModelShape.of(PRESETS["nano"], vocab_size=280, tie_embeddings=True)
    weights, micro_batches = 4 * shape.num_parameters, BATCH // MICRO
    stream = MICRO * LENGTH * shape.hidden_size * 4
    expected = {
        "gradients": weights,  # 2(n - 1)/n of them
        # each half of a layer gathers and scatters the stream, forward and backward; so do both ends
        "tp": micro_batches * stream / 2 * (8 * shape.num_layers + 4),
        # per micro-batch, half of a rank's share comes and half of the gradients goes; layers are gathered twice
        "fsdp": micro_batches // 2 * weights / 2 * 3,
    }[kind]
    assert row[f"sent_{kind}_bytes"] == pytest.approx(expected, rel=0.15)
    assert row[f"wait_{kind}_s"] > 0


def test_tensorboard_reads_the_same_rows(pipeline: Trainer) -> None:
    (file,) = (_attempt(pipeline) / "tensorboard").iterdir()
    events = [event for event in _events(file) if event.HasField("summary")]
    assert [event.step for event in events] == list(range(1, ROWS + 1))
    for event, row in zip(events, pipeline.rows(), strict=True):
        read = {value.tag: value.simple_value for value in event.summary.value}
        expected = {tag(name): value for name, value in row.items() if name not in ("step", "time_s")}
        assert read == pytest.approx(expected, rel=1e-6)
        assert event.wall_time == row["time_s"]
    assert "train/loss" in read and "validation/loss" in read


def _events(file: Path) -> Iterator[Event]:
    """The records of an event file: length, its checksum, an Event, its checksum."""
    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield Event.FromString(data[at + 12 : at + 12 + length])
        at += 12 + length + 4


def test_a_profile_has_a_trace_of_each_rank_and_a_picture(pipeline: Trainer) -> None:
    directory = _attempt(pipeline) / "profile"
    assert sorted(path.name for path in directory.iterdir()) == ["timeline.svg", "trace-0.json.gz", "trace-1.json.gz"]
    for rank in (0, 1):
        trace = json.loads(gzip.decompress((directory / f"trace-{rank}.json.gz").read_bytes()))
        assert any("aten::mm" in event["name"] for event in trace["traceEvents"])
    picture = _parsed((directory / "timeline.svg").read_text())
    texts = [element.text or "" for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "tiny: pp 2, steps 4 to 5" in texts
    assert {"rank 0  pp 0", "rank 1  pp 1", "step 4", "step 5"} <= set(texts)
    shares = {text.rsplit(" ", 2)[0]: float(text.rsplit(" ", 2)[1]) for text in texts if text.endswith(" %")}
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert min(shares["forward"], shares["backward"], shares["waiting for a pipeline neighbour (bubble)"]) > 0


def _parsed(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture)  # noqa: S314 - our own


def test_a_profile_beyond_the_last_step_is_refused(trainer: Trainer) -> None:
    with pytest.raises(SpecError, match=r"`profile` names steps 5 to 7: expected steps up to `steps: 6`"):
        trainer.job(steps=6, profile={})
    assert trainer.job(steps=7, profile={}).profile


def test_mfu_is_told_where_the_peak_is_known(trainer: Trainer, tmp_path: Path) -> None:
    calibration = tmp_path / "calibration.json"
    job = trainer.job()
    shape = ModelShape.of(PRESETS["nano"], vocab_size=280)
    told = shape, job.sequence_length, torch.float32, torch.device("cpu"), 2
    assert peak_tokens_per_s(*told, calibration) is None  # type: ignore[arg-type]
    calibration.write_text(json.dumps({"CPU": {"fp32_flops": 1e11}}))
    torch.set_num_threads(2)
    found = peak_tokens_per_s(*told, calibration)  # type: ignore[arg-type]
    assert found == pytest.approx(2 * 2 * 1e11 / shape.training_flops(job.sequence_length))
    assert peak_tokens_per_s(*told[:2], torch.bfloat16, *told[3:], calibration) is None  # type: ignore[arg-type]


def test_numbers_of_ranks_travel_in_a_sum() -> None:
    steps = [RankStep(*(float(rank * 100 + n) for n in range(len(NAMES)))) for rank in range(3)]
    sums = [sum(column) for column in zip(*(outgoing(step, rank, 3) for rank, step in enumerate(steps)), strict=True)]
    assert incoming(sums) == steps


def test_a_ranks_own_time_is_what_it_does_not_wait_for_others() -> None:
    step = RankStep.of({"step_s": 1.0, "data_wait_s": 0.1, "wait_tp_s": 0.2, "wait_other_s": 0.05})
    assert step.comm_wait_s == pytest.approx(0.25) and step.own_s == pytest.approx(0.75)


def test_the_bubble_is_that_of_the_schedule() -> None:
    """Two stages and four micro-batches of one second, forward and backward in all: each waits one of five seconds, the
    first in between, the last at the beginning and, when it is done, for the first."""
    ranks = [
        RankStep.of({"pipeline_s": 5.0, "wait_pp_s": 1.0, "memory_bytes": 1.0}),
        RankStep.of({"pipeline_s": 4.5, "wait_pp_s": 0.5, "memory_bytes": 2.0, "data_wait_s": 0.1}),
    ]
    row = summary(ranks)
    assert row["bubble"] == pytest.approx((2 - 1) / (4 + 2 - 1))
    assert (row["memory_bytes"], row["data_wait_s"], row["wait_pp_s"]) == (2.0, 0.1, 0.75)


def test_a_meter_sees_what_is_communicated_while_it_is_open() -> None:
    issue, wait = vars(dist.ProcessGroup)["allreduce"], vars(dist.Work)["wait"]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    meter = Meter(torch.device("cpu"))
    try:
        meter.open()
        with part("forward"):
            dist.all_reduce(torch.ones(3))
        with counted_as("tp"):
            dist.all_reduce(torch.ones(3))
        with counted_as(None):
            dist.all_reduce(torch.ones(3))
        names = [span.name for span in meter.take().spans]
        assert names == ["gradients", "forward", "tp"]
        assert meter.take().spans == [] and set(KINDS) == set(meter.take().sent_bytes)
    finally:
        meter.close()
        dist.destroy_process_group()
    assert vars(dist.ProcessGroup)["allreduce"] is issue and vars(dist.Work)["wait"] is wait


def test_activities_fill_the_time_and_waits_count_as_such() -> None:
    found = activities([("forward", 0.0, 4.0), ("tp", 1.0, 2.0), ("pp", 6.0, 8.0), ("pipeline", 0.0, 9.0)], 10.0, 10)
    assert found == [
        *[("forward", 0, 1), ("communication", 1, 2), ("forward", 2, 4)],
        *[("rest", 4, 6), ("bubble", 6, 8), ("rest", 8, 10)],
    ]


def test_a_picture_of_many_events_stays_small() -> None:
    waits = [("tp", i / 1e4, (i + 0.5) / 1e4) for i in range(10_000)]
    picture = draw([Lane(f"rank {rank}", waits, [0.0]) for rank in range(4)], 1, "a <title> & more")
    assert len(list(_parsed(picture))) > 4
    assert len(picture) < 1_000_000
