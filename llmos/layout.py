"""Where everything lies under the state directory (``LLMOS_STATE_DIR``): the one place that knows the names.

On several nodes the directory lies on storage that all of them mount.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AttemptDirs:
    """One attempt of a job. ``docs/architecture.md``, "The attempt protocol", says who writes what when."""

    root: Path

    @property
    def started(self) -> Path:
        """Created with O_EXCL by whoever runs the attempt; holds the id of the Ray session it runs in."""
        return self.root / "started"

    @property
    def log(self) -> Path:
        """What all ranks wrote, secrets redacted."""
        return self.root / "log"

    @property
    def metrics(self) -> Path:
        """One JSON object per line, written by rank 0."""
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """What happened to training in the attempt, one JSON object per line: ``{at, what, why}``."""
        return self.root / "events.jsonl"

    @property
    def cause(self) -> Path:
        """Why its ranks ended: the error of the first that had one of its own, as JSON."""
        return self.root / "cause.json"

    def stack(self, rank: int) -> Path:
        """What each thread of ``rank`` was doing when no step had ended for too long."""
        return self.root / "stacks" / f"rank-{rank:05d}"

    @property
    def tensorboard(self) -> Path:
        """The same as TensorBoard event files, written by rank 0."""
        return self.root / "tensorboard"

    @property
    def profile(self) -> Path:
        """A trace of each rank and a picture of all of them, if the job asks for it."""
        return self.root / "profile"

    def samples(self, rank: int) -> Path:
        """Which samples ``rank`` has read, a JSON object per step, if the job asks for it."""
        return self.root / f"samples-{rank}.jsonl"

    @property
    def stop(self) -> Path:
        """Exists once the attempt was asked to checkpoint and end."""
        return self.root / "stop"

    @property
    def outcome(self) -> Path:
        """What rank 0 has to say at the end of training: phase, step, metrics."""
        return self.root / "outcome.json"

    @property
    def result(self) -> Path:
        """Written last: how the attempt ended."""
        return self.root / "result.json"


@dataclass(frozen=True, slots=True)
class JobDirs:
    """One job."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        """The trained model in the Hugging Face layout; exists once it is complete."""
        return self.root / "export"

    @property
    def adapter(self) -> Path:
        """The trained adapter by itself, in PEFT's layout, if the job asks for it."""
        return self.root / "adapter"

    def attempt(self, number: int) -> AttemptDirs:
        return AttemptDirs(self.root / "attempts" / str(number))


@dataclass(frozen=True, slots=True)
class Layout:
    """The state directory."""

    root: Path

    @property
    def client(self) -> Path:
        """The front door's address and a key for it (0600)."""
        return self.root / "client.json"

    @property
    def cluster(self) -> Path:
        """What ``llmos up`` started: processes, address, ports (0600)."""
        return self.root / "cluster.json"

    @property
    def autoscaling(self) -> Path:
        """The config of Ray's autoscaler, of a cluster of local nodes."""
        return self.root / "autoscaling.json"

    @property
    def local_nodes(self) -> Path:
        """What local nodes besides the head write while they start, a file each."""
        return self.root / "nodes"

    @property
    def ray_token(self) -> Path:
        """Ray's authentication token (0600)."""
        return self.root / "ray_token"

    @property
    def caller_secret(self) -> Path:
        """What the front door signs with, for replicas (0600)."""
        return self.root / "caller_secret"

    @property
    def certificate(self) -> Path:
        """The TLS certificate of replicas on other machines than the front door's (PEM), if there is one."""
        return self.root / "tls" / "certificate.pem"

    @property
    def certificate_key(self) -> Path:
        """The key of :attr:`certificate` (PEM, 0600)."""
        return self.root / "tls" / "key.pem"

    @property
    def front_socket(self) -> Path:
        """Where the front door asks for its port (a Unix socket)."""
        return self.root / "front.sock"

    @property
    def database(self) -> Path:
        """The control module's store."""
        return self.root / "control.db"

    @property
    def usage(self) -> Path:
        """What requests have used and the store has not counted yet (0700)."""
        return self.root / "usage"

    @property
    def calibration(self) -> Path:
        """What ``llmos estimate --calibrate`` measured, by kind of accelerator."""
        return self.root / "calibration.json"

    @property
    def data(self) -> Path:
        """Prepared corpora, one directory per digest."""
        return self.root / "data"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def functions(self) -> Path:
        """What users have sent for jobs to call, each under its SHA-256."""
        return self.root / "functions"

    def function(self, sha256: str) -> Path:
        """A function that a user has sent for jobs to call (0600)."""
        return self.functions / sha256

    def job(self, id: str) -> JobDirs:
        return JobDirs(self.root / "jobs" / id)

    def model(self, name: str, version: int) -> Path:
        return self.models / name / str(version)
