import ctypes
import os
import signal
import time

import pytest

from pipeline.workers import Failure, run_isolated


def work(job):
    if job == "hang":  # In native code with the global lock held: no signal handler and no thread would run.
        ctypes.PyDLL(None).sleep(1000)
    if job == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "raise":
        raise ValueError("a reason")
    return job * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_hangs_and_crashes_cost_only_their_own_job(workers):
    jobs = [1, "hang", 2, "crash", 3, "raise", 4]
    began = time.monotonic()
    outcomes = dict(run_isolated(work, jobs, workers=workers, deadline=2))
    assert outcomes == {
        **{job: job * 2 for job in (1, 2, 3, 4)},
        "hang": Failure("timeout 2 s"),
        "crash": Failure("killed by signal 11"),
        "raise": Failure("a reason"),
    }
    assert time.monotonic() - began < 60


def test_leaving_early_leaves_no_process():
    import multiprocessing

    for _ in run_isolated(work, range(100), workers=2, deadline=10):
        break
    assert not multiprocessing.active_children()
