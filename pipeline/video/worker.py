"""Server process that imports the libraries once, and forks the decoding processes. It is independent of the user's
script, threads and GPU context, so it works in notebooks, in daemonic processes and after a fork."""

import gc
import os
import signal
import sys
from contextlib import suppress
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import NoReturn

import psutil
import torch

import pipeline.video.transform  # noqa: F401  (so that workers have it from the start)
from pipeline.base.errors import first_line


def serve(descriptor: int) -> None:
    """Fork workers, watch their memory and end them, until the connection closes.

    Requests and answers:
        ("start", memory limit in bytes, sys.path), then a descriptor: process id.
        ("end", process id): exit code, negative for a signal, and whether the process was over its memory limit."""
    control = Connection(descriptor)
    gc.freeze()  # So that collections, here and in workers, skip what the imports made.
    limits: dict[int, float] = {}  # By process id; 0: it was over its limit, and killed.
    try:
        while True:
            if not control.poll(0.1 if limits else None):
                for pid, limit in limits.items():
                    with suppress(psutil.Error):
                        if psutil.Process(pid).memory_info().rss > limit:
                            os.kill(pid, signal.SIGKILL)
                            limits[pid] = 0
                continue
            match control.recv():
                case "start", limit, path:
                    pipe = reduction.recv_handle(control)
                    pid = os.fork()
                    if not pid:
                        control.close()
                        _work(Connection(pipe), path)
                    os.close(pipe)
                    limits[pid] = limit
                    control.send(pid)
                case "end", pid:
                    over_limit = limits.pop(pid) == 0
                    os.kill(pid, signal.SIGKILL)
                    code = -signal.SIGKILL
                    with suppress(psutil.TimeoutExpired):  # A process that waits for a dead disk cannot be killed.
                        code = psutil.Process(pid).wait(10)
                    control.send((int(code), over_limit))
    except (EOFError, OSError):  # The parent is gone.
        for pid in limits:
            os.kill(pid, signal.SIGKILL)


def _work(pipe: Connection, path: list[str]) -> NoReturn:
    """Answer (function, job) with (True, result) or (False, (reason, decoder)), until the pipe closes."""
    sys.path[:] = path
    torch.set_num_threads(1)  # There is a worker for each core.
    with suppress(EOFError, OSError):
        while True:
            function, job = pipe.recv()
            try:
                answer = True, function(job)
            except Exception as error:  # Whatever a decoder raises belongs to this clip, not to the run.
                answer = False, (first_line(error), getattr(error, "decoder", ""))
            pipe.send(answer)
            del answer, job
            gc.collect()  # PyAV's containers are in reference cycles, so they stay open, with their frames, until then.
    os._exit(0)
