"""A front door and a control module as processes that may be killed: only what is about usage of either."""

from __future__ import annotations

import itertools
import os
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Client, Listener
from pathlib import Path

from llmos.control.store import Store
from llmos.front.ledger import Ledger
from llmos.layout import Layout
from llmos.usage import FRONT_DOOR, Record

GONE = (OSError, EOFError)


def record(id: str, at: float = 1.7e9) -> Record:
    return Record(id, "k", "t", "s", "m@1", 10, 4, 1, 200, at, FRONT_DOOR)


def front_door(root: Path, incarnation: int, asked: int | None = None) -> None:
    """Answer requests for ever, or ``asked`` of them until the control module has counted all. A request whose client
    has seen the end of the answer is a line of ``answered``."""
    ledger = Ledger(Layout(root).usage)
    sending = threading.Thread(target=_send, args=[root, ledger, asked is not None], daemon=True)
    sending.start()
    answered = os.open(root / "answered", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for number in itertools.count() if asked is None else range(asked):
        id = f"req_{incarnation}_{number}"
        ledger.add(record(id, time.time()))
        os.write(answered, f"{id}\n".encode())
        time.sleep(0.0005)
    sending.join()


def _send(root: Path, ledger: Ledger, ends: bool) -> None:
    while True:
        records = ledger.take()
        if not records and ends and not ledger._open.count:
            return
        with suppress(*GONE), Client(str(root / "control.sock"), "AF_UNIX") as control:
            while records:
                control.send(records)
                control.recv()
                ledger.forget(records)
                records = ledger.take()
        ledger.sync()
        time.sleep(0.005)


def control_module(root: Path) -> None:
    """Count what the front door sends, for ever."""
    store = Store(Layout(root))
    (root / "control.sock").unlink(missing_ok=True)
    with Listener(str(root / "control.sock"), "AF_UNIX") as listener:
        while True:
            with suppress(*GONE), listener.accept() as door:
                while records := door.recv():
                    store.request_usage.add(records, time.time())
                    door.send(len(records))
