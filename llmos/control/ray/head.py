"""``llmos up`` and ``llmos down``: a Ray cluster on this machine, or a place on one that runs already."""

from __future__ import annotations

import fcntl
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from llmos import settings
from llmos.control import attempt, node_kinds
from llmos.control.ray import actor, attempts, doorman, gateway, local_ray, services
from llmos.control.ray.fleet import ask_for
from llmos.control.ray.processes import Process, end, listener, port_is_free
from llmos.control.ray.session import CONTROL, NAMESPACE, connect, logs
from llmos.control.standbys import MOST
from llmos.control.store import Store
from llmos.core.types import Order
from llmos.errors import ClusterError, ConflictError, LlmosError
from llmos.files import read_json, write_json
from llmos.layout import Layout

HOST = "127.0.0.1"
PORT = 8000
READY_TIMEOUT_S = 180.0  # 6 s on an idle machine; over 90 s were seen on one with ten times its cores' work
DRAIN_GRACE_S = 30.0
REST_TIMEOUT_S = 10.0
POLL_S = 0.2

Report = Callable[[str], None]


def up(
    state_dir: Path,
    address: str | None,
    port: int | None,
    report: Report,
    autoscale_local: int | None = None,
    autoscaling_config: Path | None = None,
    order: Order | None = None,
    standbys: int | None = None,
) -> dict[str, Any]:
    """Start a Ray cluster, or join the one at ``address``; start the control module and the gateway on it.

    A cluster that is started grows by nodes on this machine up to ``autoscale_local`` of them, the head included. In
    one that is joined, ``autoscaling_config`` (the file that Ray's autoscaler has) says which nodes may be asked for.
    ``order`` is who goes first among jobs of one tenant and priority, ``standbys`` how many processes are ready on each
    node at most (None: who came first, and 8; or as it is).
    Returns once the front door answers: ``{url, address, state_dir, dashboard}``. Twice changes nothing. Raises
    ConflictError for a port that is taken (``None``: 8000) or when it runs elsewhere, ClusterError when it cannot.
    """
    layout = Layout(state_dir)
    _make_private(state_dir)
    with _alone(layout):
        running = _running(layout)
        if running is None:
            how = {"order": str(order or Order.FIFO), "standbys": MOST if standbys is None else standbys}
            running = _begin(layout, address, port or PORT, report, autoscale_local, autoscaling_config, how)
        else:
            asked = {"address": address, "port": port, "autoscale_local": autoscale_local}
            _check_same(running, **asked, order=order, standbys=standbys)
        try:
            url = _serve(layout, running)
        except BaseException as error:
            if not running.get("ready"):
                _give_up(layout, running, theirs=isinstance(error, ConflictError), report=report)
            raise
        finally:
            ray.shutdown()  # whoever goes on from here talks HTTP; Ray would print into its output
        if not running.get("ready"):
            _remember(layout, {**running, "ready": True})
    return {"url": url, "address": running["address"], "state_dir": str(state_dir), "dashboard": running["dashboard"]}


def is_up(state_dir: Path) -> bool:
    """Whether the cluster that the last :func:`up` started or joined still runs."""
    return _running(Layout(state_dir)) is not None


def down(state_dir: Path, report: Report) -> None:
    """End everything that :func:`up` started; jobs that run checkpoint first and continue after the next ``up``."""
    layout = Layout(state_dir)
    running = _running(layout)
    if running is None:
        layout.cluster.unlink(missing_ok=True)
        report("nothing is running")
        return
    with _alone(layout):
        try:
            _attach(layout, running)
            _drain(layout, report)
        except KeyboardInterrupt:
            report("not waiting any longer; jobs will go on from their last checkpoint")
        except (LlmosError, RayError) as error:
            report(f"could not ask running jobs to checkpoint: {str(error).splitlines()[0]}")
        try:
            if not running.get("process"):
                _leave(layout, running)
        finally:
            ray.shutdown()
        _end(layout, running)
    report("everything that was started here has ended; state stays in " + str(state_dir))


def _begin(
    layout: Layout,
    address: str | None,
    port: int,
    report: Report,
    nodes: int | None,
    config: Path | None,
    how: dict[str, Any],
) -> dict[str, Any]:
    """Start or join a cluster; write down which, and ``how`` llmos runs on it."""
    doorman.dismiss(layout.front_socket)  # of a cluster that ended without `down`
    if not port_is_free(port):
        who = listener(port)
        raise ConflictError(
            f"port {port} of {HOST} is taken{f' by {who}' if who else ''}",
            hint="choose another with `--port`, or end what listens there",
        )
    if address:
        if config:
            node_kinds.read(config)  # one that cannot be read is better told of now than in a log
        report(f"joining the Ray cluster at {address}")
        connect(address)
        running = {"address": ray.get_runtime_context().gcs_address, "joined": address, "port": port, "dashboard": ""}
        running |= {"autoscaling": str(config.absolute())} if config else {}
    else:
        report("starting Ray")
        Store(layout).close()  # a damaged one is better told of now than by an actor that does not start
        head = local_ray.start(layout, lambda started: _remember(layout, {**started, **how, "port": port}), nodes)
        running = {**head, "port": port}
    running |= how
    _remember(layout, running)
    return running


def _serve(layout: Layout, running: dict[str, Any]) -> str:
    """Have the control module and the gateway run; the address of the front door, which answers."""
    url = f"http://{HOST}:{running['port']}"
    _attach(layout, running)
    how = {name: running[name] for name in ("autoscaling", "order", "standbys") if name in running}
    _wait_until_ready(layout, url, actor.start(layout, HOST, running["port"], **how))
    return url


def _remember(layout: Layout, running: dict[str, Any]) -> None:
    write_json(layout.cluster, running, mode=0o600)


def _make_private(state_dir: Path) -> None:
    """Create the state directory, or take from others what an existing one grants them: it holds keys and tokens."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if state_dir.stat().st_mode & 0o077:
        state_dir.chmod(0o700)


def _check_same(running: dict[str, Any], **wanted: str | int | None) -> None:
    """Raise ConflictError if ``up`` is asked for another place, or order, than where and how llmos runs."""
    for name, asked in wanted.items():
        found, option = running.get(name), f"--{name.replace('_', '-')}"
        if asked not in (None, "auto", found, running.get("joined")):
            how = f"with `{option} {found}`" if found is not None else f"without `{option}`"
            raise ConflictError(f"llmos is up already, {how}, not `{asked}`", hint="`llmos down` first, to change that")


def _give_up(layout: Layout, running: dict[str, Any], theirs: bool, report: Report) -> None:
    """End what a failed ``up`` has started; ``theirs``: the cluster's llmos is somebody else's, and stays."""
    report("giving up; ending what was started")
    if not (running.get("process") or theirs):
        with suppress(ClusterError):
            _leave(layout, running)
    _end(layout, running)


def _running(layout: Layout) -> dict[str, Any] | None:
    """What the last ``up`` wrote down, if that still runs."""
    running = read_json(layout.cluster)
    if running is None:
        return None
    if process := running.get("process"):
        return dict(running) if Process(**process).find() else None
    host, _, port = running["address"].rpartition(":")
    with suppress(OSError):
        socket.create_connection((host, int(port)), timeout=3).close()
        return dict(running)
    return None


def _attach(layout: Layout, running: dict[str, Any]) -> None:
    if running.get("process"):
        local_ray.join(layout, running)
    else:
        connect(running["address"])


def _wait_until_ready(layout: Layout, url: str, control: Any) -> None:
    """Wait for the front door, with a key of one's own; make the first one where there is none."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    key = _stored_key(layout, url)
    with httpx.Client(base_url=url, trust_env=False, timeout=10.0) as http:
        while True:
            answer = None
            with suppress(httpx.TransportError):
                answer = http.get("/readyz", headers={"Authorization": f"Bearer {key}"} if key else {})
            if answer is not None and answer.status_code == 200:
                return
            if answer is not None and answer.status_code == 401:
                key = _first_key(layout, url, control)
            if failure := gateway.failure():
                raise ClusterError(f"the front door at {url} does not start: {failure}", hint=_look_at_logs())
            if time.monotonic() > deadline:
                what = f"it answered {answer.status_code}" if answer is not None else "nobody answers there"
                raise ClusterError(
                    f"the front door at {url} did not become ready within {READY_TIMEOUT_S:.0f} s: {what}",
                    hint=_look_at_logs(),
                )
            time.sleep(POLL_S)


def _look_at_logs() -> str:
    return f"the whole story is in Ray's logs: {logs()}"


def _stored_key(layout: Layout, url: str) -> str | None:
    stored = read_json(layout.client)
    return str(stored["key"]) if stored and stored.get("url") == url else None


def _first_key(layout: Layout, url: str, control: Any) -> str:
    key = str(ray.get(control.first_key.remote(f"up on {socket.gethostname()}"))["secret"])
    settings.save_connection(settings.Connection(url, key), layout.root)
    return key


def _drain(layout: Layout, report: Report) -> None:
    """Stop planning, then ask every attempt to checkpoint and end."""
    with suppress(ValueError, RayError):  # without a control module there is nobody who plans
        control: Any = ray.get_actor(CONTROL, NAMESPACE)
        ray.get(control.rest.remote(), timeout=REST_TIMEOUT_S)
    asked: set[tuple[str, int]] = set()
    deadline = time.monotonic() + DRAIN_GRACE_S
    while (left := set(attempts.alive())) and time.monotonic() < deadline:
        if not asked:
            report(f"asking running jobs to checkpoint (up to {DRAIN_GRACE_S:.0f} s)")
        for job, number in left - asked:
            attempt.ask_to_stop(layout.job(job).attempt(number))
        asked |= left
        time.sleep(POLL_S)
    if left:
        report(f"{len(left)} did not in time; they will go on from their last checkpoint")


def _leave(layout: Layout, running: dict[str, Any]) -> None:
    """Remove llmos from a cluster that others started: its applications and its actors, and the nodes that it asked
    for. Raises ClusterError."""
    try:
        with suppress(ValueError):  # first of all: it would start the others anew
            ray.kill(ray.get_actor(CONTROL, NAMESPACE), no_restart=True)
        gateway.remove(layout)
        services.remove_everything()
        for job, number in list(attempts.alive()):
            attempts.kill(job, number)
        if running.get("autoscaling"):
            ask_for([])
    except (RayError, RayServeException) as error:
        what = str(error).splitlines()[0]
        raise ClusterError(f"llmos could not leave the cluster: {what}", hint="try `llmos down` again") from error


def _end(layout: Layout, running: dict[str, Any]) -> None:
    if process := running.get("process"):
        end(Process(**process), marker=running["session"])
    layout.cluster.unlink(missing_ok=True)


@contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """One ``up`` or ``down`` at a time. Raises ConflictError while another one works."""
    with open(layout.root / "up.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another `llmos up` or `llmos down` is at work on {layout.root}", hint="wait until it is done"
            ) from error
        yield
