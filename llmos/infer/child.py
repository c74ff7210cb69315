"""The process of an engine's core: ``python -m llmos.infer.child FD``, started by :mod:`llmos.infer.link`.

It ends when the process that started it does, and when a step takes much longer than it can: whoever waits for the
step's tokens is told so by the other side.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from llmos.errors import EngineError, LlmosError
from llmos.infer.launch import Meeting, Process, launch_here
from llmos.infer.link import BEAT_S, IDLE_S, RESTART, failure, serve
from llmos.infer.messages import Message
from llmos.infer.options import EngineOptions
from llmos.infer.starting import Core, start


class Pipe:
    """The other side. Two threads send: the core's loop, and one that says that this process is alive."""

    def __init__(self, descriptor: int) -> None:
        self._connection, self._lock = Connection(descriptor), threading.Lock()
        self._parent = os.getppid()

    def options(self) -> Any:
        """The first message."""
        return self._connection.recv()

    def send(self, message: object) -> None:
        """Ends this process if nobody is there."""
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            os._exit(1)

    def launch(self, meeting: Meeting) -> list[Process]:
        """Have the other side start the ranks, and end them: it is the one who knows where."""
        self.send(meeting)
        return []

    def receive(self, wait: bool) -> list[Message] | None:
        """What has come, after up to IDLE_S if that is to be waited for; None to end."""
        messages: list[Message] = []
        try:
            while self._connection.poll(IDLE_S if wait and not messages else 0.0):
                some = self._connection.recv()
                if some is None:
                    return None
                messages += some
        except (EOFError, OSError):
            os._exit(1)
        return messages

    def beat(self, core: Future[Core]) -> None:
        """Say every BEAT_S that this process is alive, for as long as somebody is there and no step hangs."""
        while os.getppid() == self._parent:
            self.send(None)
            time.sleep(BEAT_S)
            if core.done() and (taken_s := core.result().overdue_s()):
                what = f"the engine hangs: a step has taken {taken_s:.0f} s, much longer than any before"
                self.send(EngineError(what, hint=RESTART))
                break
        os._exit(1)


def main() -> int:
    """Returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other side, which closes this one
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("llmos").setLevel(logging.INFO)
    faulthandler.enable()  # a signal that ends this process leaves tracebacks too
    pipe = Pipe(int(sys.argv[1]))
    built: Future[Core] = Future()
    threading.Thread(target=pipe.beat, args=[built], name="llmos-beat", daemon=True).start()
    try:
        options = pipe.options()
        # loads torch, which takes seconds: this process has said that it lives
        core, ready = start(
            options, pipe.launch if isinstance(options, EngineOptions) and options.host else launch_here
        )
    except Exception as error:
        pipe.send(error if isinstance(error, LlmosError) else failure(error))
        return 1
    built.set_result(core)
    pipe.send(ready)
    try:
        serve(core, pipe.receive, pipe.send)
    except Exception as error:
        pipe.send(failure(error))
        return 1
    finally:
        core.close()
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # without waiting for a grammar that is still being compiled
