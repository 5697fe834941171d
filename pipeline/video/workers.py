"""A function run over many jobs in processes that may hang, crash or take too much memory.

Native decoders can hang while holding Python's global lock, where neither signals nor threads help. So each job has a
deadline that ends its process, which is then replaced, and jobs that crash a process are tried once more.
"""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe, connection, reduction
from typing import Any

from pipeline.base.errors import KinemaError
from pipeline.video.worker import GIB

GRACE = 2.0
"""Seconds after its deadline at which a process that did not end itself is killed."""


@dataclass(frozen=True)
class Failure:
    """Why a job gave no result; `decoder` gave up, '' if the process ended."""

    reason: str
    decoder: str = ""


class _Server:
    """The process from which workers are forked."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.control, theirs = Pipe()
        with theirs:
            start = f"import sys; sys.path[:] = {sys.path!r}\nfrom pipeline.video.worker import serve\n"
            start += f"serve({theirs.fileno()})"
            # A group of its own, so that Ctrl-C does not reach it. It ends when this process does.
            self.process = subprocess.Popen(
                [sys.executable, "-c", start], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0
            )

    def request(self, *message: Any, descriptor: int | None = None) -> Any:
        with self.lock:
            try:
                self.control.send(message)
                if descriptor is not None:
                    reduction.send_handle(self.control, descriptor, None)
                return self.control.recv()
            except (EOFError, OSError):
                raise KinemaError("the process that starts the decoders has ended; try again") from None


_server: _Server | None = None
_starting = threading.Lock()


def preload() -> _Server:
    """Start the server in the background; its imports then run beside those of this process."""
    global _server
    with _starting:
        # After a fork, that of the parent process is not ours.
        if not _server or _server.owner != os.getpid() or _server.process.poll() is not None:
            _server = _Server()
        return _server


@dataclass(frozen=True)
class _Task:
    job: Any
    function: Callable
    tried_before: bool = False


class _Worker:
    """One process, the pipe to it, and its task."""

    def __init__(self, timeout: float, memory_limit: float):
        self.timeout, self.memory_limit = timeout, memory_limit
        self.start()

    def start(self) -> None:
        self.server = preload()
        self.pipe, theirs = Pipe()
        with theirs:
            limit = self.memory_limit * GIB
            self.pid = self.server.request("start", limit, sys.path, descriptor=theirs.fileno())

    def take(self, task: _Task) -> None:
        self.task = task
        try:
            self.pipe.send((task.function, task.job, self.timeout))
        except (BrokenPipeError, ConnectionResetError):  # It died after its last result.
            self.restart()
            self.pipe.send((task.function, task.job, self.timeout))
        self.started = time.monotonic()

    def left(self) -> float:
        """Seconds until the process should have ended itself."""
        return max(self.started + self.timeout + GRACE - time.monotonic(), 0)

    def finish(self) -> tuple[Any, bool]:
        """Return the result or a `Failure`, and whether the process ended so that a second try makes sense."""
        seconds = time.monotonic() - self.started
        try:
            if self.pipe.poll():
                done, result = self.pipe.recv()
                return (result if done else Failure(result)), False
        except (EOFError, OSError):
            pass
        status, over_limit = self.restart()
        if over_limit:
            return Failure(f"memory limit {self.memory_limit:g} GiB (decode.memory_limit)"), True
        if seconds >= self.timeout:
            return Failure(f"timeout after {self.timeout:g} s (decode.timeout)"), False
        code = os.waitstatus_to_exitcode(status)
        return Failure(f"killed by signal {-code}" if code < 0 else f"decoder exited with {code}"), True

    def restart(self) -> tuple[int, bool]:
        ended = self.stop()
        self.start()
        return ended

    def stop(self) -> tuple[int, bool]:
        self.pipe.close()
        return self.server.request("end", self.pid)


def run_isolated(
    function: Callable[[Any], Any],
    jobs: Iterable[Any],
    workers: int,
    timeout: float,
    memory_limit: float = float("inf"),
    fallback: Callable[[Any], Any] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Apply a picklable `function` to each job in worker processes, which end with the iterator.

    Each worker holds at most one finished result, so memory is bounded by `workers`.

    Args:
        function: called with one job; it may return a `Failure`, and an exception it raises becomes one. It must be
            importable: functions of the user's script are not known in other processes.
        jobs: taken lazily.
        workers: number of processes.
        timeout: seconds for one try of a job; one that takes all of it is not tried again.
        memory_limit: GiB that a process may take.
        fallback: called instead in the second try, after a job has ended its process.

    Yields:
        (job, result or `Failure`), in order of completion.
    """
    tasks = (_Task(job, function) for job in jobs)
    again: deque[_Task] = deque()
    crew: list[_Worker] = []
    try:
        for task in itertools.islice(tasks, workers):
            crew.append(_Worker(timeout, memory_limit))
            crew[-1].take(task)
        busy = list(crew)
        while busy:
            ready = connection.wait([worker.pipe for worker in busy], min(worker.left() for worker in busy))
            for worker in [worker for worker in busy if worker.pipe in ready or not worker.left()]:
                task = worker.task
                outcome, ended = worker.finish()
                retry = ended and not task.tried_before
                if retry:
                    again.append(_Task(task.job, fallback or function, tried_before=True))
                following = again.popleft() if again else next(tasks, None)
                if following:
                    worker.take(following)
                else:
                    busy.remove(worker)
                if not retry:
                    yield task.job, outcome
    finally:
        for worker in crew:
            with suppress(KinemaError):
                worker.stop()
