import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline.video.workers import Failure, run_isolated

from conftest import REPOSITORY


def work(job):
    if job == "hang":  # In native code with the global lock held: no signal handler and no thread would run.
        ctypes.PyDLL(None).sleep(1000)
    if job == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "raise":
        raise ValueError("a reason")
    if job == "hoard":
        hoard = [bytearray(50_000_000)]
        while True:
            hoard.append(bytearray(50_000_000))
            time.sleep(0.02)
    return job * 2


def killed_once(marker):
    """Is killed from outside in its first run, and answers in its second."""
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "same again"


def make_arrays(size):
    numbers = np.arange(size, dtype=np.int64)
    return {"whole": numbers, "every third, backwards": numbers[::-3], "text": str(size)}


def test_a_script_without_a_name_needs_no_guard():
    """Processes that were made anew from it would fail, or run all of it once more."""
    script = "import os.path; from pipeline.video.workers import run_isolated\n"
    script += "print(list(run_isolated(os.path.basename, ['a/b'], 1, 60)))"
    done = subprocess.run([sys.executable, "-"], cwd=REPOSITORY, input=script, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[('a/b', 'b')]\n", "")


def answer(job):
    return "second way"


def test_arrays_arrive_as_they_were_made():
    sizes = [1_000_000, 0, 3, 2_000_000, 1]
    for size, got in run_isolated(make_arrays, sizes, workers=2, deadline=60):
        made = make_arrays(size)
        assert got.keys() == made.keys() and all(np.array_equal(got[key], made[key]) for key in made)
        got["whole"][:] = 0  # They belong to the receiver.


@pytest.mark.parametrize("workers", [1, 2])
def test_hangs_and_crashes_cost_only_their_own_job(workers):
    jobs = [1, "hang", 2, "crash", 3, "raise", 4, "hoard"]
    began = time.monotonic()
    outcomes = dict(run_isolated(work, jobs, workers=workers, deadline=8, memory=1))
    assert outcomes == {
        **{job: job * 2 for job in (1, 2, 3, 4)},
        "hang": Failure("timeout 8 s", deadly=True),
        "crash": Failure("killed by signal 11", deadly=True),
        "raise": Failure("a reason"),
        "hoard": Failure("memory limit 1 GiB", deadly=True),
    }
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("job", ["hang", "crash"])
def test_a_job_that_ends_its_process_is_tried_the_other_way(job):
    assert dict(run_isolated(work, [job, 5], 1, deadline=4, fallback=answer)) == {job: "second way", 5: 10}


def test_a_job_whose_process_is_killed_from_outside_is_tried_the_same_way(tmp_path):
    marker = str(tmp_path / "marker")
    assert dict(run_isolated(killed_once, [marker], 1, deadline=60, fallback=answer)) == {marker: "same again"}


def test_an_idle_worker_that_is_killed_is_replaced():
    outcomes = run_isolated(work, range(4), workers=1, deadline=60)
    assert next(outcomes) == (0, 0)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)
    assert dict(outcomes) == {1: 2, 2: 4, 3: 6}


def test_leaving_early_leaves_no_process():
    for _ in run_isolated(work, range(100), workers=2, deadline=10):
        break
    assert not multiprocessing.active_children()
