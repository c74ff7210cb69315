"""Who holds the front door's port: ``python -m llmos.control.ray.doorman HOST PORT SOCKET``. Needs Python only.

The front door itself may be killed, or take seconds to start. The port is the doorman's, and stays. A front door that
connects to the Unix socket ``SOCKET`` gets the listening socket, and answers for as long as it keeps that connection;
while there is none, the doorman says 503 and when to try again. What waits in the socket's queue when a front door
dies is not lost: the doorman answers it, or the next front door.

It ends when it is told to and no front door is left, and by itself when none has come for LONELY_S.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from llmos.errors import ClusterError

LONELY_S = 60.0
LEAVE_S = 10.0
BACKLOG = 2048
END = b"end"
_PATIENCE_S = 2.0
_PAUSE_S = 0.1
_MAX_HEAD = 1 << 16
_CROWD = 64
"""So many are answered at once; others wait in the queue."""
_BODY = (
    b'{"error": {"message": "The front door is being restarted. Ask again in a second.", "type": "server_error", '
    b'"param": null, "code": "restarting", "hint": "Ask again in a second."}}'
)
_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: " + str(len(_BODY)).encode() + b"\r\n\r\n" + _BODY
)


class Doorman:
    """Keeps ``listener``, and gives it to those who connect to ``meeting``."""

    def __init__(self, listener: socket.socket, meeting: socket.socket) -> None:
        self._listener, self._meeting = listener, meeting
        self._doors: set[socket.socket] = set()
        self._told: list[socket.socket] = []  # by them, to end
        self._selector = selectors.DefaultSelector()
        self._crowd = threading.BoundedSemaphore(_CROWD)
        for one in (listener, meeting):
            one.setblocking(False)
        self._selector.register(meeting, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Returns when nobody needs it any more."""
        alone_since_s = time.monotonic()
        while self._doors or not (self._told or time.monotonic() - alone_since_s > LONELY_S):
            for key, _ in self._selector.select(1.0):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                if one is self._meeting:
                    self._welcome()
                elif one is self._listener:
                    self._refuse()
                else:
                    self._hear(one)
            if self._doors:
                alone_since_s = time.monotonic()

    def _welcome(self) -> None:
        """A front door has come: the port is its own now."""
        with contextlib.suppress(OSError):
            door, _ = self._meeting.accept()
            socket.send_fds(door, [b"."], [self._listener.fileno()])
            if not self._doors:
                self._selector.unregister(self._listener)
            self._doors.add(door)
            self._selector.register(door, selectors.EVENT_READ)

    def _hear(self, door: socket.socket) -> None:
        """A front door has ended; or it was none, but somebody who says that all is over."""
        said = b""
        with contextlib.suppress(OSError):
            said = door.recv(len(END))
        self._selector.unregister(door)
        self._doors.discard(door)
        if said == END:
            self._told.append(door)  # open until the end: that is what they wait for
        else:
            door.close()
        if not self._doors:
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _refuse(self) -> None:
        if not self._crowd.acquire(timeout=_PAUSE_S):
            return  # a front door may have come: it is not kept waiting by slow clients
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=[client], daemon=True).start()
            return
        self._crowd.release()

    def _answer(self, client: socket.socket) -> None:
        """Reads to the end before and after: a socket that is closed over unread bytes takes its answer back."""
        with client, contextlib.suppress(OSError):
            client.settimeout(_PATIENCE_S)
            head, deadline = b"", time.monotonic() + _PATIENCE_S
            while b"\r\n\r\n" not in head and len(head) < _MAX_HEAD and time.monotonic() < deadline:
                if not (more := client.recv(_MAX_HEAD)):
                    break
                head += more
            client.sendall(_ANSWER)
            client.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + _PATIENCE_S
            while client.recv(_MAX_HEAD) and time.monotonic() < deadline:
                continue
        self._crowd.release()


class Port:
    """The front door's side: ``listener`` is the port, until :meth:`close` or the end of this process."""

    def __init__(self, connection: socket.socket, listener: socket.socket) -> None:
        self._connection, self.listener = connection, listener

    def wait(self) -> None:
        """Returns when the doorman has ended."""
        with contextlib.suppress(OSError):
            self._connection.recv(1)

    def close(self) -> None:
        """The doorman is to answer from now on."""
        self._connection.close()


def ask(host: str, port: int, meeting: Path, held: socket.socket | None = None) -> Port:
    """The port, from the doorman at ``meeting``, who is started if there is none: on ``held``, if that is the port
    already. Raises ClusterError."""
    with contextlib.suppress(OSError):
        return _connect(meeting)
    descriptors = [held.fileno()] if held else []
    command = [sys.executable, "-P", "-m", "llmos.control.ray.doorman", host, str(port), str(meeting)]
    done = subprocess.run(
        [*command, *map(str, descriptors)], pass_fds=descriptors, stdin=subprocess.DEVNULL, capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}, check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ClusterError(f"nobody can listen on port {port} of {host}: {''.join(said)}", hint="Free that port.")
    return _connect(meeting)


def dismiss(meeting: Path) -> None:
    """End the doorman at ``meeting``, if there is one, once no front door is left; wait for it up to LEAVE_S."""
    with contextlib.suppress(OSError), _connection(meeting) as connection:
        connection.settimeout(LEAVE_S)
        connection.sendall(END)
        while connection.recv(1):
            continue


def _connect(meeting: Path) -> Port:
    connection = _connection(meeting)
    try:
        connection.settimeout(LEAVE_S)  # one that hangs is told of
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        if not descriptors:
            raise ConnectionResetError("the process that holds the port ended when it was asked for it")
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return Port(connection, socket.socket(fileno=descriptors[0]))


def _connection(meeting: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        with _near(meeting) as path:
            connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _near(meeting: Path) -> Iterator[str]:
    """A name for ``meeting`` that is short enough for a Unix socket, however long its directory's is."""
    directory = os.open(meeting.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{meeting.name}"
    finally:
        os.close(directory)


def main() -> None:
    """Hold the port that the command line names, in the background: whoever started this waits until it can be asked,
    and is not its parent, whose end might be its own (Ray ends the children of an actor with it)."""
    host, port, meeting = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if held := sys.argv[4:]:
        listener = socket.socket(fileno=int(held[0]))
    else:
        listener = socket.create_server((host, port), backlog=BACKLOG)  # fails if there is a doorman
    meeting.unlink(missing_ok=True)
    unix = socket.socket(socket.AF_UNIX)
    with _near(meeting) as path:
        unix.bind(path)
    meeting.chmod(0o600)
    unix.listen()
    if os.fork():
        os._exit(0)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    try:
        Doorman(listener, unix).run()
    finally:
        meeting.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
