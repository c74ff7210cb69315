"""What running jobs tell Prometheus."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from llmos.control.prometheus import exposition
from tests.unit.control.world import World


def test_gauges_of_each_job() -> None:
    rows = [
        {"id": "a-1", "metrics": {"loss": 2.5, "tokens_per_s": 9600.0, "wait_tp_s": 0.25, "sent_tp_bytes": 4e6}},
        {"id": "b-1", "metrics": {"loss": None, "mfu": 0.41, "validation_loss": 3.0}},
    ]
    families = text_string_to_metric_families(exposition(rows).decode())
    found = {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}
    job = ("job", "a-1")
    assert found == {
        ("llmos_train_loss", job): 2.5,
        ("llmos_train_tokens_per_second", job): 9600.0,
        ("llmos_train_comm_wait_seconds", job, ("kind", "tp")): 0.25,
        ("llmos_train_sent_bytes", job, ("kind", "tp")): 4e6,
        ("llmos_train_mfu", ("job", "b-1")): 0.41,
    }


def test_only_running_jobs_are_told(world: World) -> None:
    world.control.submit_job(world.spec())
    assert world.control.training() == []
    world.run(3)
    attempt = world.layout.job("coder-1").attempt(1)
    attempt.root.mkdir(parents=True)
    attempt.metrics.write_text('{"step": 1, "loss": 3.0}\n')
    assert world.control.training() == [{"id": "coder-1", "metrics": {"step": 1, "loss": 3.0}}]
    (attempt.root / "profile").mkdir()
    (attempt.root / "profile" / "timeline.svg").touch()
    job = world.control.get_job("coder")
    assert (job["directory"], job["files"]) == (str(attempt.root), ["profile/timeline.svg"])
    world.run(10)
    assert world.control.training() == []
