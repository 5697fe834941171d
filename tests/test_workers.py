import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from pipeline.video.timestamps import DecodeError
from pipeline.video.workers import Failure, preload, run_isolated

from conftest import REPOSITORY


def work(job):
    if job == "hang":  # In native code with the global lock held: no signal handler and no thread would run.
        ctypes.PyDLL(None).sleep(1000)
    if job == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "exit":
        os._exit(3)
    if job == "raise":
        raise ValueError("a reason")
    if job == "unreadable":
        raise DecodeError("damaged", "pyav")
    if job == "hoard":
        hoard = [bytearray(50_000_000)]
        while True:
            hoard.append(bytearray(50_000_000))
            time.sleep(0.02)
    return job * 2


def answer(job):
    return "second way"


def killed_once(marker):
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "same again"


def make_arrays(size):
    numbers = np.arange(size, dtype=np.int64)
    return {"whole": numbers, "every third, backwards": numbers[::-3], "text": str(size)}


def leave_cycle(size):
    cycle = [bytearray(size)]
    cycle.append(cycle)
    return psutil.Process().memory_info().rss


def doubled(jobs):
    return dict(run_isolated(work, jobs, 2, timeout=60))


def living():
    return [child.pid for child in psutil.Process(preload().process.pid).children()]


def test_a_script_without_a_main_guard_works():
    script = "import os.path; from pipeline.video.workers import run_isolated\n"
    script += "print(list(run_isolated(os.path.basename, ['a/b'], 1, 60)))"
    done = subprocess.run([sys.executable, "-"], cwd=REPOSITORY, input=script, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[('a/b', 'b')]\n", "")


def test_arrays_arrive_unchanged():
    sizes = [1_000_000, 0, 3, 2_000_000, 1]
    for size, got in run_isolated(make_arrays, sizes, workers=2, timeout=60):
        made = make_arrays(size)
        assert got.keys() == made.keys() and all(np.array_equal(got[key], made[key]) for key in made)
        got["whole"][:] = 0  # They can be written to.


def test_memory_in_reference_cycles_is_freed_after_each_job():
    sizes = [rss for _, rss in run_isolated(leave_cycle, [30_000_000] * 20, workers=1, timeout=60)]
    assert max(sizes) - min(sizes) < 60_000_000


@pytest.mark.parametrize("workers", [1, 3])
def test_hangs_and_crashes_cost_only_their_own_job(workers):
    jobs = [1, "hang", 2, "crash", 3, "raise", "unreadable", 4, "hoard", "exit"]
    began = time.monotonic()
    outcomes = dict(run_isolated(work, jobs, workers, timeout=5, memory_limit=1))
    assert outcomes == {
        **{job: job * 2 for job in (1, 2, 3, 4)},
        "hang": Failure("timeout after 5 s (decode.timeout)"),
        "crash": Failure("killed by signal 11"),
        "exit": Failure("decoder exited with 3"),
        "raise": Failure("a reason"),
        "unreadable": Failure("damaged", "pyav"),
        "hoard": Failure("memory limit 1 GiB (decode.memory_limit)"),
    }
    assert time.monotonic() - began < 60 and not living()


@pytest.mark.parametrize("job", ["hang", "crash"])
def test_a_job_that_ends_its_process_is_retried_with_the_fallback(job):
    assert dict(run_isolated(work, [job, 5], 1, timeout=4, fallback=answer)) == {job: "second way", 5: 10}


def test_a_job_whose_process_is_killed_is_retried(tmp_path):
    marker = str(tmp_path / "marker")
    assert dict(run_isolated(killed_once, [marker], 1, timeout=60)) == {marker: "same again"}


def test_workers_killed_between_jobs_are_replaced():
    outcomes = run_isolated(work, range(4), workers=1, timeout=60)
    assert next(outcomes) == (0, 0)
    for pid in living():
        os.kill(pid, signal.SIGKILL)
    assert dict(outcomes) == {1: 2, 2: 4, 3: 6}


def test_a_server_that_was_killed_is_replaced():
    doubled([1])
    preload().process.kill()
    preload().process.wait()
    assert doubled([1]) == {1: 2}


def test_leaving_early_leaves_no_process():
    for _ in run_isolated(work, range(100), workers=2, timeout=10):
        break
    assert not living()


def test_jobs_are_read_lazily():
    read = []
    jobs = (read.append(job) or job for job in range(100))
    next(run_isolated(work, jobs, workers=2, timeout=60))
    assert len(read) <= 5


def test_works_in_a_daemonic_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(doubled, ([1, 2],)) == {1: 2, 2: 4}


def test_works_after_a_fork_in_both_processes():
    assert doubled([1]) == {1: 2}
    child = os.fork()
    if not child:
        os._exit(0 if doubled([1, 2]) == {1: 2, 2: 4} else 1)
    assert doubled([3]) == {3: 6}
    assert os.waitpid(child, 0)[1] == 0


def test_workers_end_with_a_killed_parent():
    script = "import time; from pipeline.video.workers import preload, run_isolated\n"
    script += "outcomes = run_isolated(time.sleep, [0, 1000, 1000], 1, 2000); next(outcomes)\n"
    script += "print(preload().process.pid, flush=True); time.sleep(1000)"
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    server = psutil.Process(int(parent.stdout.readline()))
    everyone = [server, *server.children()]
    assert len(everyone) == 2
    parent.kill()
    parent.communicate()
    _, alive = psutil.wait_procs(everyone, timeout=20)
    assert not alive
