"""The processes that decode: a server that imports the libraries once, and the workers that it forks.

Run by `pipeline.video.workers`. The server has no threads and no GPU context, which a decoder trips over after a plain
fork. It does not know the user's script, and needs no help from the process that started it, so it works under a
daemonic process and after a fork.
"""

import faulthandler
import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import NoReturn

import psutil

from pipeline.base.errors import first_line

GIB = 2**30

_ends: float | None = None
"""When the time of the current job is over, by `time.monotonic`; None outside a worker."""


@contextmanager
def part_of_deadline(share: float) -> Iterator[None]:
    """Give a step only part of the current job's remaining time; nothing outside a worker."""
    if _ends is None:
        yield
        return
    _end_process_at(time.monotonic() + share * (_ends - time.monotonic()))
    try:
        yield
    finally:
        _end_process_at(_ends)


def _end_process_at(moment: float) -> None:
    """End this process at that time, even if native code holds Python's global lock."""
    faulthandler.dump_traceback_later(max(moment - time.monotonic(), 0.001), exit=True, file=_nowhere)


def serve(descriptor: int) -> None:
    """Fork workers and report their ends, until the connection closes.

    Requests are ("start", memory limit in bytes, sys.path), followed by a descriptor, answered by the process id; and
    ("end", process id), answered by (exit status as of `os.waitpid`, whether it was over its memory limit).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one.
    importlib.import_module("pipeline.video.transform")
    control = Connection(descriptor)
    limits: dict[int, float] = {}
    over: set[int] = set()
    try:
        while True:
            if not control.poll(0.1 if limits else None):
                over |= _kill_large(limits)
                continue
            request, *arguments = control.recv()
            if request == "start":
                limit, path = arguments
                pipe = reduction.recv_handle(control)
                pid = os.fork()
                if not pid:
                    control.close()
                    _work(Connection(pipe), path)
                os.close(pipe)
                limits[pid] = limit
                control.send(pid)
            else:
                [pid] = arguments
                del limits[pid]
                control.send((_end(pid), pid in over))
    except (EOFError, OSError):  # The parent is gone.
        for pid in limits:
            os.kill(pid, signal.SIGKILL)


def _kill_large(limits: dict[int, float]) -> set[int]:
    large = set()
    for pid, limit in limits.items():
        with suppress(psutil.Error):
            if psutil.Process(pid).memory_info().rss > limit:
                os.kill(pid, signal.SIGKILL)
                large.add(pid)
    return large


def _end(pid: int) -> int:
    """Kill a worker that still lives, and return its status; not waiting forever, since a process that waits for a
    dead disk cannot be killed."""
    os.kill(pid, signal.SIGKILL)
    for _ in range(1000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    return signal.SIGKILL


def _work(pipe: Connection, path: list[str]) -> NoReturn:
    """Answer jobs (function, job, seconds) with (True, result) or (False, error), until the pipe closes."""
    global _ends, _nowhere
    import torch

    sys.path[:] = path
    torch.set_num_threads(1)  # There is a worker for each core.
    _nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(EOFError, OSError):
        while True:
            function, job, seconds = pipe.recv()
            _ends = time.monotonic() + seconds
            _end_process_at(_ends)
            try:
                answer = True, function(job)
            except Exception as error:  # Whatever a decoder raises belongs to this clip, not to the run.
                answer = False, first_line(error)
            faulthandler.cancel_dump_traceback_later()
            _ends = None
            pipe.send(answer)
    os._exit(0)
