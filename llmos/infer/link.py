"""The way to an engine's core, which runs in a thread of this process or in a process of its own.

A process of its own is for serving: HTTP, tokens and text then take nothing from the step. Messages are pickled, and go
through a socket pair that only the two processes hold: when either ends, however it ends, the other notices.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any, Protocol

from llmos.errors import EngineError, LlmosError
from llmos.infer.encoder_options import EncoderOptions
from llmos.infer.launch import Gang, Meeting, Process, launch_here
from llmos.infer.messages import Message, Ready, Report
from llmos.infer.options import EngineOptions
from llmos.infer.starting import Core, start

SILENCE_S = 10.0
"""A process that says nothing for so long hangs: it speaks every BEAT_S, whatever it computes."""
BEAT_S = 1.0
IDLE_S = 1.0
"""How often a core with nothing to do looks whether its runner is still there."""
CLOSE_S = 10.0
"""What a process has for its step in progress before it is killed."""
WORDS_S = 5.0
"""What a process has to say why a rank ended that somebody else had started."""

RESTART = "Restart it; its log says more, unless it was killed from outside."

REOPEN = "Make another one."

_log = logging.getLogger(__name__)

Options = EngineOptions | EncoderOptions


class Listener(Protocol):
    """What hears the core; its methods are called in a thread of the link, one at a time."""

    def on_report(self, report: Report[Any]) -> None:
        """What a step brought."""
        ...

    def on_end(self, error: EngineError) -> None:
        """The core answers no more: the last call."""
        ...


class Link(Protocol):
    """A core on its way or at work. Its model is loading while the maker goes on."""

    def ready(self) -> Ready:
        """Wait for the model. Raises what loading it raised; then there is nothing to close."""
        ...

    def send(self, message: Message) -> None:
        """Never waits; nothing happens after the end."""
        ...

    def close(self) -> None:
        """End the core, after its step in progress, and wait for it."""
        ...


def serve(core: Core, receive: Callable[[bool], list[Message] | None], send: Callable[[Report[Any]], None]) -> None:
    """Step while there is something to do, and every IDLE_S.

    ``receive(wait)`` gives what has come, None to end; it may have to wait so long. A long prompt has no outcome for
    many steps: that it is being read is said every BEAT_S.
    """
    said_s = time.monotonic()
    while (messages := receive(not core.busy)) is not None:
        for message in messages:
            if isinstance(message, str):
                core.cancel(message)
            else:
                core.add(message)
        outcomes = core.step()
        if outcomes or messages or (core.busy and time.monotonic() - said_s > BEAT_S):
            send(Report(outcomes, core.stats()))
            said_s = time.monotonic()


class ThreadLink:
    """The core in a thread. One that hangs cannot be ended: that is what a process is for."""

    def __init__(self, options: Options, listener: Listener, gang: Gang | None = None) -> None:
        self._options, self._listener = options, listener
        self._launch = gang.launch if gang else launch_here
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._ready: Future[Ready] = Future()
        self._thread = threading.Thread(target=self._run, name="llmos-engine", daemon=True)
        self._thread.start()

    def ready(self) -> Ready:
        """See :class:`Link`."""
        return self._ready.result()

    def send(self, message: Message) -> None:
        """See :class:`Link`."""
        self._inbox.put(message)

    def close(self) -> None:
        """See :class:`Link`."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            core, ready = start(self._options, self._launch)
        except BaseException as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(ready)
        end = EngineError("the engine is closed", hint=REOPEN)
        try:
            serve(core, self._receive, self._listener.on_report)
        except BaseException as error:
            end = failure(error)
        try:
            core.close()
        except Exception:
            _log.exception("the engine could not be closed")
        self._listener.on_end(end)

    def _receive(self, wait: bool) -> list[Message] | None:
        messages: list[Message] = []
        try:
            while (message := self._inbox.get(block=wait and not messages, timeout=IDLE_S)) is not None:
                messages.append(message)
        except queue.Empty:
            return messages
        return None


class ProcessLink:
    """The core in a process of its own, which ends with this one."""

    def __init__(self, options: Options, listener: Listener, gang: Gang | None = None) -> None:
        self._listener = listener
        self._ranks = _Ranks(gang)
        self._ready: Future[Ready] = Future()
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _child(theirs)
        self._pipe = Connection(ours.detach())
        self._outbox_thread = threading.Thread(target=self._write, args=[options], name="llmos-to-engine", daemon=True)
        self._inbox_thread = threading.Thread(target=self._read, name="llmos-from-engine", daemon=True)
        self._outbox_thread.start()
        self._inbox_thread.start()

    @property
    def pid(self) -> int:
        """The process of the core."""
        return self._process.pid

    def ready(self) -> Ready:
        """See :class:`Link`."""
        return self._ready.result()

    def send(self, message: Message) -> None:
        """See :class:`Link`."""
        self._outbox.put(message)

    def close(self) -> None:
        """See :class:`Link`."""
        self._outbox.put(None)
        self._inbox_thread.join(CLOSE_S)
        self._process.kill()
        self._inbox_thread.join()

    def _write(self, options: Options) -> None:
        """Send what is in the outbox, as one message if it is several: a full pipe must not stop an event loop."""
        try:
            self._pipe.send(options)
            over = False
            while not over:
                messages = [self._outbox.get()]
                while not self._outbox.empty():
                    messages.append(self._outbox.get())
                over = None in messages
                self._pipe.send(None if over else messages)
        except OSError:
            _log.info("the engine's process is gone: nothing more is sent to it")
        except Exception:  # a message that cannot be sent: the end of the process is what everybody is told
            _log.exception("a message to the engine's process failed")
            self._process.kill()

    def _read(self) -> None:
        """Pass on what comes, until the end; then nothing is left of the process."""
        error = self._listen()
        self._process.kill()
        self._process.wait()
        self._ranks.kill()
        self._outbox.put(None)
        self._outbox_thread.join()
        self._pipe.close()
        if not self._ready.done():
            self._ready.set_exception(error)
        else:
            self._listener.on_end(error if isinstance(error, EngineError) else failure(error))

    def _listen(self) -> LlmosError:
        """Returns why it is over."""
        poller = select.poll()
        poller.register(self._pipe.fileno(), select.POLLIN)
        try:
            while poller.poll(SILENCE_S * 1000):
                message = self._pipe.recv()
                if isinstance(message, Report):
                    self._listener.on_report(message)
                elif isinstance(message, Ready):
                    self._ready.set_result(message)
                elif isinstance(message, Meeting):
                    self._ranks.launch(message)
                elif isinstance(message, LlmosError):
                    return message
                if not self._ready.done() and (lost := self._ranks.lost()):
                    return lost
        except (EOFError, OSError):
            return EngineError(f"the engine's process ended: {self._ending()}", hint=RESTART)
        except Exception as error:  # of the listener, or a message that cannot be read: nobody may wait for ever
            return failure(error)
        return EngineError(f"the engine's process hangs: it said nothing for {SILENCE_S:.0f} s", hint=RESTART)

    def _ending(self) -> str:
        try:
            code = self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


class _Ranks:
    """The ranks that this side has started for the core: none, unless there is a gang."""

    def __init__(self, gang: Gang | None) -> None:
        self._gang, self._processes, self._lost_s = gang, list[Process](), 0.0

    def launch(self, meeting: Meeting) -> None:
        assert self._gang is not None
        self._processes += self._gang.launch(meeting)

    def lost(self) -> EngineError | None:
        """For one that ended before the core was ready, once the core has had WORDS_S to say it better."""
        gone = [number for number, process in enumerate(self._processes) if process.poll() is not None]
        if not gone:
            return None
        self._lost_s = self._lost_s or time.monotonic()
        if time.monotonic() - self._lost_s < WORDS_S:
            return None
        return EngineError(f"rank {gone[0]} has ended before the engine was ready", hint=RESTART)

    def kill(self) -> None:
        for process in self._processes:
            try:
                process.kill()
            except Exception:  # each kind of process has its own; the others are to end all the same
                _log.exception("a rank could not be ended")


def failure(error: BaseException) -> EngineError:
    """What everybody is told when the engine fails with ``error``, in whose handler this is called."""
    _log.error("the engine failed", exc_info=error)
    what = f"the engine failed and answers no more: {type(error).__name__}: {error}"
    return EngineError(what, hint=RESTART)


def _child(pipe: socket.socket) -> subprocess.Popen[bytes]:
    """A process that reads options and messages from ``pipe``; it finds the modules that this one finds."""
    command = [sys.executable, "-P", "-m", "llmos.infer.child", str(pipe.fileno())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[pipe.fileno()])
