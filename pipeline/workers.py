"""A function run over many jobs in processes that may hang or die.

Native decoders can spin for ever while holding Python's global lock, where neither signals nor threads help. So every
process is watched from outside: one that overruns its deadline or dies is replaced, and its job yields a `Failure`.
"""

import faulthandler
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, forkserver, get_context
from typing import Any

# A fork server imports the heavy libraries once and clean; each worker is then a cheap fork of it, without the
# threads, locks and GPU context of this process, which a decoder made after a plain fork trips over.
context = get_context("forkserver")
context.set_forkserver_preload(["pipeline.extract"])


def warm_up() -> None:
    """Starts the fork server in the background; its imports then run beside those of this process."""
    forkserver.ensure_running()


@dataclass(frozen=True)
class Failure:
    """What became of a job that gave no result."""

    reason: str


def run_isolated(
    function: Callable[[Any], Any], jobs: Iterable[Any], workers: int, deadline: float
) -> Iterator[tuple[Any, Any]]:
    """Applies a picklable `function` to each job in worker processes.

    Each worker holds at most one finished result until it is asked for, so memory is bounded by `workers`.

    Args:
        function: called with one job; an exception it raises becomes a `Failure` with its message.
        jobs: taken lazily.
        workers: how many processes.
        deadline: seconds that one job may take.

    Yields:
        (job, result or `Failure`), in order of completion.
    """
    jobs = iter(jobs)
    crew: list[_Worker] = []
    try:
        for job in itertools.islice(jobs, workers):
            crew.append(_Worker(function, deadline))
            crew[-1].take(job)
        busy = list(crew)
        while busy:
            patience = min(worker.seconds_left() for worker in busy)
            ready = connection.wait([worker.pipe for worker in busy], timeout=max(patience, 0))
            for worker in list(busy):
                if worker.pipe in ready:
                    job, outcome = worker.result()
                elif worker.seconds_left() <= 0 and not worker.pipe.poll():
                    job, outcome = worker.job, Failure(f"timeout {deadline:g} s")
                    worker.restart()
                else:
                    continue
                try:
                    worker.take(next(jobs))
                except StopIteration:
                    busy.remove(worker)
                yield job, outcome
    finally:
        for worker in crew:
            worker.stop()


class _Worker:
    """One process, the pipe to it, and the job it is busy with."""

    def __init__(self, function: Callable, deadline: float):
        self.function, self.deadline = function, deadline
        self.start()

    def start(self) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.function, self.deadline), daemon=True)
        self.process.start()
        theirs.close()

    def take(self, job: Any) -> None:
        self.job = job
        try:
            self.pipe.send(job)
        except BrokenPipeError:  # It died after its last result.
            self.restart()
            self.pipe.send(job)
        self.started = time.monotonic()

    def seconds_left(self) -> float:
        return self.started + self.deadline - time.monotonic()

    def result(self) -> tuple[Any, Any]:
        job = self.job
        try:
            return job, self.pipe.recv()
        except (EOFError, OSError):  # Dead before or amid its answer.
            self.process.join()
            code = self.process.exitcode
            self.restart()
            return job, Failure(f"killed by signal {-code}" if code < 0 else f"decoder exited with {code}")

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: connection.Connection, function: Callable, deadline: float) -> None:
    """The life of a worker: job in, result out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers.
    with open(os.devnull, "w") as nowhere:
        while True:
            try:
                job = pipe.recv()
            except EOFError:
                return
            # Runs in C without the global lock: ends a hung worker whose parent is no longer there to do it.
            faulthandler.dump_traceback_later(deadline + 60, exit=True, file=nowhere)
            try:
                outcome = function(job)
            except Exception as error:  # Whatever a decoder throws belongs to this clip, not to the run.
                outcome = Failure(str(error) or type(error).__name__)
            faulthandler.cancel_dump_traceback_later()
            pipe.send(outcome)
