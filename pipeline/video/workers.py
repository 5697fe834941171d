"""A function run over many jobs in processes that may hang, crash or eat up the memory.

Native decoders can spin for ever while holding Python's global lock, where neither signals nor threads help. So every
process is watched from outside: one that overruns its deadline or its memory is ended, and any that ends is replaced.
Its job is tried once more, and if that ends a process too, it yields a `Failure`.
"""

import faulthandler
import itertools
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, forkserver, get_context, reduction
from types import ModuleType
from typing import Any

import numpy as np
import psutil

from pipeline.base.errors import first_line
from pipeline.base.files import nameless_file

# A fork server imports the heavy libraries once and clean; each worker is then a cheap fork of it, without the
# threads, locks and GPU context of this process, which a decoder made after a plain fork trips over.
context = get_context("forkserver")
context.set_forkserver_preload(["pipeline.video.transform"])

GIB = 2**30
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)
"""Signals that no fault raises: another hand ended the process, such as the system's when memory ran out."""


def preload() -> None:
    """Starts the fork server in the background; its imports then run beside those of this process. Call it in the main
    thread."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process, which ends the others.
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, handler)


@dataclass(frozen=True)
class Failure:
    """What became of a job that gave no result; `decoder` is who gave up, '' if the process ended before it could tell;
    `deadly` if it ended two processes by its own doing."""

    reason: str
    decoder: str = ""
    deadly: bool = False


def run_isolated(
    function: Callable[[Any], Any],
    jobs: Iterable[Any],
    workers: int,
    deadline: float,
    memory: float = float("inf"),
    fallback: Callable[[Any], Any] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Applies a picklable `function` to each job in worker processes.

    Each worker holds at most one finished result until it is asked for, so memory is bounded by `workers`.

    Args:
        function: called with one job; it may return a `Failure`, and an exception it raises becomes one. It must be
            of a module: what a script defines itself is not known in other processes.
        jobs: taken lazily.
        workers: how many processes.
        deadline: seconds that one job may take, half of them in each of two tries.
        memory: GiB that a process may take.
        fallback: called in the second try instead, unless the process was ended from outside in the first.

    Yields:
        (job, result or `Failure`), in order of completion.
    """
    tasks = (_Task(job, function, deadline) for job in jobs)
    again: deque[_Task] = deque()
    crew: list[_Worker] = []
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(crew, memory, done), daemon=True)
    try:
        for task in itertools.islice(tasks, workers):
            crew.append(_Worker())
            crew[-1].take(task)
        watch.start()
        busy = list(crew)
        while busy:
            ready = connection.wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                task, outcome = worker.finish()
                if isinstance(outcome, _Death):
                    if task.tried_before:
                        outcome = Failure(outcome.reason, deadly=not outcome.from_outside)
                    else:
                        second = function if outcome.from_outside or not fallback else fallback
                        again.append(_Task(task.job, second, deadline, tried_before=True))
                following = again.popleft() if again else next(tasks, None)
                if following:
                    worker.take(following)
                else:
                    busy.remove(worker)
                if not isinstance(outcome, _Death):
                    yield task.job, outcome
    finally:
        done.set()
        for worker in crew:
            worker.stop()


@dataclass(frozen=True)
class _Task:
    """One try of a job; `deadline` is for both tries together."""

    job: Any
    function: Callable
    deadline: float
    tried_before: bool = False


@dataclass(frozen=True)
class _Death:
    """The end of a process amid a try."""

    reason: str
    from_outside: bool


class _Worker:
    """One process, the pipe to it, and the task it is busy with."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # So that no process is killed for a task that has just been finished.
        self.start()

    def start(self) -> None:
        self.kill_reason = ""  # Why the watch ended the process.
        self.started: float | None = None
        self.pipe, theirs = context.Pipe()
        self.shelf = _Shelf(nameless_file())
        self.process = context.Process(target=_serve, args=(theirs, self.shelf), daemon=True)
        with _nameless_main():
            self.process.start()
        theirs.close()

    def take(self, task: _Task) -> None:
        self.task = task
        try:
            self.pipe.send(task)
        except (BrokenPipeError, ConnectionResetError):  # It died after its last result.
            self.restart()
            self.pipe.send(task)
        self.started = time.monotonic()

    def finish(self) -> tuple[_Task, Any]:
        """Returns the task and its result, or its `_Death`, after which there is a new process."""
        with self.lock:
            self.started = None
        try:
            text, sizes = self.pipe.recv()
            outcome = pickle.loads(text, buffers=self.shelf.take(sizes))
        except (EOFError, OSError):  # Dead before or amid its answer.
            self.process.join()
            code = self.process.exitcode
            reason = f"killed by signal {-code}" if code < 0 else f"decoder exited with {code}"
            outcome = _Death(self.kill_reason or reason, not self.kill_reason and -code in FROM_OUTSIDE)
        if self.kill_reason or isinstance(outcome, _Death):
            self.restart()
        return self.task, outcome

    def watch(self, memory: float) -> None:
        """Ends the process if its task takes too long or too much memory; called from the watching thread."""
        # What goes wrong here is that the process has just ended by itself, or that the pipe has just been closed.
        with self.lock, suppress(psutil.Error, OSError):
            if self.started is None or self.pipe.poll():
                return
            if time.monotonic() - self.started > self.task.deadline / 2:
                self.kill_reason = f"timeout {self.task.deadline:g} s"
            elif psutil.Process(self.process.pid).memory_info().rss > memory * GIB:
                self.kill_reason = f"memory limit {memory:g} GiB"
            if self.kill_reason:
                self.process.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        self.process.kill()
        self.process.join(10)  # Not for ever: a process that waits for a dead disk cannot be killed.
        self.pipe.close()
        os.close(self.shelf.descriptor)


class _Shelf:
    """Memory in which a worker lays down the arrays of its result, for a pipe would take them in small bites.

    It is a file without a name, so that nothing of it can be left behind.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Callable, tuple[Any]]:
        return _inherited_shelf, (reduction.DupFd(self.descriptor),)

    def put(self, buffers: list[pickle.PickleBuffer]) -> list[int]:
        """Writes them one after the other and returns their sizes."""
        offset = 0
        for buffer in buffers:
            rest = buffer.raw()
            while rest:
                written = os.pwrite(self.descriptor, rest, offset)
                rest, offset = rest[written:], offset + written
        return [buffer.raw().nbytes for buffer in buffers]

    def take(self, sizes: list[int]) -> list[np.ndarray]:
        """Reads copies of what was put."""
        offset = 0
        buffers = [np.empty(size, np.uint8) for size in sizes]
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                read = os.preadv(self.descriptor, [rest], offset)
                rest, offset = rest[read:], offset + read
        return buffers


def _inherited_shelf(duplicate: Any) -> _Shelf:
    return _Shelf(duplicate.detach())


_one_at_a_time = threading.Lock()


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Keeps a process that is started here from importing the user's script, which then needs no
    `if __name__ == "__main__"`, and need not even be a file."""
    with _one_at_a_time:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = nameless = ModuleType("__main__")
        # Another thread finds in it what it looks for, but not where it came from.
        vars(nameless).update(
            {name: value for name, value in vars(main).items() if name not in ("__file__", "__spec__")}
        )
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _watch(crew: list[_Worker], memory: float, done: threading.Event) -> None:
    while not done.wait(0.1):
        for worker in crew:
            worker.watch(memory)


def _serve(pipe: connection.Connection, shelf: _Shelf) -> None:
    """The life of a worker: task in, result out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers.
    import torch  # Late: listing a store, which imports this file too, needs none.

    torch.set_num_threads(1)  # There is a worker for each core.
    with open(os.devnull, "w") as nowhere:
        while True:
            try:
                task = pipe.recv()
            except (EOFError, ConnectionResetError):
                return
            # Runs in C without the global lock: ends a hung worker whose parent is no longer there to do it.
            faulthandler.dump_traceback_later(task.deadline + 60, exit=True, file=nowhere)
            try:
                outcome = task.function(task.job)
            except Exception as error:  # Whatever a decoder throws belongs to this clip, not to the run.
                outcome = Failure(first_line(error))
            faulthandler.cancel_dump_traceback_later()
            arrays: list[pickle.PickleBuffer] = []
            text = pickle.dumps(outcome, 5, buffer_callback=arrays.append)
            try:
                pipe.send((text, shelf.put(arrays)))
            except (BrokenPipeError, ConnectionResetError):  # The parent is gone.
                return
