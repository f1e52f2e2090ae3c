"""Processes of a run: one that dies is told of, and none outlives the run."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from aiao_diffusers.bench.suite.workers import run_tasks
from aiao_diffusers.errors import ResultsError


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_of():
    with pytest.raises(ResultsError, match="a process of this run was killed"):
        list(run_tasks(os._exit, [(3,), (3,)], 2))


@pytest.mark.slow
def test_processes_end_with_a_run_that_is_killed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from aiao_diffusers.bench.suite.workers import run_tasks\n"
        "def begin(number):\n"
        "    Path(sys.argv[1], str(number)).touch()\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    list(run_tasks(begin, [(number,) for number in range(3)], 2))\n"
    )
    begun = tmp_path / "begun"
    begun.mkdir()
    with subprocess.Popen([sys.executable, program, begun]) as run:
        limit = time.time() + 120
        while len(list(begun.iterdir())) < 2:
            assert run.poll() is None and time.time() < limit
            time.sleep(0.05)
        # The one child that is no worker is the tracker of multiprocessing's resources.
        workers = [p for p in psutil.Process(run.pid).children() if "spawn_main" in " ".join(p.cmdline())]
        assert len(workers) == 2
        run.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=60)
    for process in alive:
        process.kill()
    assert not alive
