"""Run a function over jobs in processes that may hang, crash or use too much memory.

Native decoders can hang while they hold the GIL, where neither signals nor threads help."""

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import Pipe, connection, reduction
from typing import Any, NamedTuple

from pipeline.base.errors import KinemaError


class Failure(NamedTuple):
    reason: str
    decoder: str = ""  # That failed; '' if the process ended.


class _Server:
    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.control, theirs = Pipe()
        with theirs:
            fd = theirs.fileno()
            code = f"import sys; sys.path[:] = {sys.path!r}; from pipeline.video.worker import serve; serve({fd})"
            # A group of its own, so that Ctrl-C does not reach it. It ends when this process does.
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[fd], stdin=subprocess.DEVNULL, process_group=0
            )

    def request(self, *message: Any, descriptor: int | None = None) -> Any:
        with self.lock:
            try:
                self.control.send(message)
                if descriptor is not None:
                    reduction.send_handle(self.control, descriptor, None)
                return self.control.recv()
            except (EOFError, OSError):
                raise KinemaError("the process that starts the decoders has died; run the command again") from None


_server: _Server | None = None
_starting = threading.Lock()


def preload() -> _Server:
    """Start the server in the background; its imports then run beside those of this process."""
    global _server
    with _starting:  # After a fork, the parent's server is not ours.
        if not _server or _server.owner != os.getpid() or _server.process.poll() is not None:
            _server = _Server()
        return _server


class _Worker:
    def __init__(self, memory_limit: float):
        self.server = preload()
        self.pipe, theirs = Pipe()
        with theirs:
            self.pid = self.server.request("start", memory_limit * 2**30, sys.path, descriptor=theirs.fileno())

    def take(self, function: Callable, job: Any, timeout: float) -> None:
        self.deadline = time.monotonic() + timeout
        with suppress(BrokenPipeError, ConnectionResetError):  # It has died, which `answer` will notice.
            self.pipe.send((function, job))

    def answer(self) -> tuple[bool, Any] | None:
        """Return what the process answered, or None if it has died or is late."""
        with suppress(EOFError, OSError):
            return self.pipe.recv() if self.pipe.poll() else None

    def end(self) -> tuple[int, bool]:
        self.pipe.close()
        return self.server.request("end", self.pid)


def run_isolated(
    function: Callable,
    jobs: Iterable,
    workers: int,
    timeout: float,
    memory_limit: float = float("inf"),
    fallback: Callable | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Apply a function to each job in worker processes; yield (job, result or `Failure`) in order of completion.

    The function must be importable; an exception that it raises becomes a `Failure`. A job that crashes or takes more
    than `timeout` seconds or `memory_limit` GiB gets a second attempt, with `fallback` if given; without it, a timeout
    is final. Jobs are read lazily, and each worker holds at most one result. The processes end with the iterator."""
    tasks, again = ((job, 1) for job in jobs), deque()  # (job, attempt)
    busy, idle, done = {}, [], []
    try:
        while True:
            while len(busy) < workers and (task := again.popleft() if again else next(tasks, None)):
                worker = idle.pop() if idle else _Worker(memory_limit)
                busy[worker] = task
                worker.take(fallback if fallback and task[1] == 2 else function, task[0], timeout)
            yield from done
            if not busy:
                return
            done = []
            left = max(min(worker.deadline for worker in busy) - time.monotonic(), 0)
            ready = connection.wait([worker.pipe for worker in busy], left)
            now = time.monotonic()
            for worker in [worker for worker in busy if worker.pipe in ready or worker.deadline <= now]:
                job, attempt = busy[worker]
                if answer := worker.answer():
                    idle.append(worker)
                    done.append((job, answer[1] if answer[0] else Failure(*answer[1])))
                else:
                    code, over_limit = worker.end()
                    late = worker.deadline <= now
                    reason = f"decoder exited with {code}" if code >= 0 else f"killed by signal {-code}"
                    if over_limit:
                        reason = f"memory limit {memory_limit:g} GiB (decode.memory_limit)"
                    elif late:
                        reason = f"timeout after {timeout:g} s (decode.timeout)"
                    if attempt == 1 and (fallback or not late):
                        again.append((job, 2))
                    else:
                        done.append((job, Failure(reason)))
                del busy[worker]
    finally:
        for worker in [*busy, *idle]:
            with suppress(KinemaError):
                worker.end()
