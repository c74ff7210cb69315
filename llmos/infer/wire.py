"""What goes between the engine's process and its ranks: frames on a TCP connection, and a step as one array.

Nothing is pickled. A frame is its kind, its length, and bytes; a connection begins with a secret that only those know
who were started to meet.
"""

from __future__ import annotations

import hmac
import itertools
import json
import socket
import struct
import threading
from enum import IntEnum
from typing import Any

import numpy as np

from llmos.infer.launch import Meeting
from llmos.infer.step import Ints, Step

_HEADER = struct.Struct("<II")
_HELLO = struct.Struct("<32sI")
BEAT = struct.Struct("<Bf")
"""Where a rank is (:class:`State`), and for how many seconds."""


class Kind(IntEnum):
    """Of a frame. Configure, step and end go to ranks; the others come from them."""

    CONFIGURE = 0
    STEP = 1
    END = 2
    READY = 3
    LOGITS = 4
    ERROR = 5
    BEAT = 6


class State(IntEnum):
    """What a rank is doing."""

    LOADING = 0
    IDLE = 1
    COMPUTING = 2
    WAITING = 3
    """For another rank."""


class Channel:
    """A connection. Several threads may send, one receives."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection, self._lock = connection, threading.Lock()

    @classmethod
    def join(cls, meeting: Meeting, number: int) -> Channel:
        """Rank ``number``'s end. Raises OSError when nobody is there."""
        connection = socket.create_connection((meeting.host, meeting.port), timeout=30.0)
        connection.settimeout(None)
        connection.sendall(_HELLO.pack(meeting.secret, number))
        return cls(connection)

    @classmethod
    def accept(cls, connection: socket.socket, meeting: Meeting, timeout_s: float) -> tuple[int, Channel] | None:
        """The number of the rank at the other end, and this end; None if it is no rank of ``meeting``.

        Receiving a frame may take ``timeout_s`` from then on, or raises TimeoutError.
        """
        connection.settimeout(timeout_s)
        try:
            secret, number = _HELLO.unpack(_read(connection, _HELLO.size))
        except (OSError, EOFError):
            return None
        if not hmac.compare_digest(secret, meeting.secret) or number >= meeting.ranks:
            return None
        return number, cls(connection)

    @property
    def address(self) -> str:
        """Of this machine, on the way to the other end."""
        return str(self._connection.getsockname()[0])

    def fileno(self) -> int:
        """For select."""
        return self._connection.fileno()

    def send(self, kind: Kind, body: bytes | memoryview = b"") -> None:
        """Raises OSError when the other end is gone."""
        with self._lock:
            self._connection.sendall(_HEADER.pack(kind, len(body)))
            self._connection.sendall(body)

    def send_json(self, kind: Kind, value: object) -> None:
        """``value`` as JSON."""
        self.send(kind, json.dumps(value).encode())

    def receive(self) -> tuple[Kind, bytearray]:
        """The next frame. Raises EOFError or OSError when the other end is gone."""
        kind, length = _HEADER.unpack(_read(self._connection, _HEADER.size))
        return Kind(kind), _read(self._connection, length)

    def receive_json(self) -> Any:
        """The JSON of the next frame."""
        return json.loads(self.receive()[1])

    def close(self) -> None:
        """The other end notices."""
        self._connection.close()


def packed(step: Step) -> bytes:
    """One array of int32: four sizes, then the five arrays."""
    arrays = (step.tokens_N, step.positions_N, step.starts_S, step.blocks_SM, step.logits_at_L)
    sizes = [len(step.tokens_N), *step.blocks_SM.shape, len(step.logits_at_L)]
    whole = np.concatenate([np.array(sizes, np.int32), *(array.ravel() for array in arrays)])
    return whole.tobytes()


def unpacked(body: bytearray) -> Step:
    """The step that :func:`packed` made an array of."""
    whole: Ints = np.frombuffer(body, np.int32)
    tokens, sequences, blocks, logits = whole[:4].tolist()
    borders = np.cumsum([4, tokens, tokens, sequences + 1, sequences * blocks, logits])
    tokens_N, positions_N, starts_S, blocks_X, logits_at_L = (
        whole[start:stop] for start, stop in itertools.pairwise(borders)
    )
    return Step(tokens_N, positions_N, starts_S, blocks_X.reshape(sequences, blocks), logits_at_L)


def _read(connection: socket.socket, size: int) -> bytearray:
    body = bytearray(size)
    rest = memoryview(body)
    while rest:
        if (got := connection.recv_into(rest)) == 0:
            raise EOFError("the other end is gone")
        rest = rest[got:]
    return body
