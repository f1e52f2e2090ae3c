"""What must not end a run in a traceback, nor leave its processes behind."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from _tiny import tiny_unconditional
from diffusers import DDPMPipeline, DDPMScheduler

from aiao_diffusers import LatentData, WatermarkKey
from aiao_diffusers.bench.suite.runner import _each, run_suite
from aiao_diffusers.errors import ConfigError, DataError, ResultsError


@pytest.fixture
def own(tmp_path):
    """A suite on a miniature model of 8x8 pixels; `own(**changes)` writes it anew and returns its path."""
    DDPMPipeline(tiny_unconditional(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    LatentData(torch.randn(4, 3, 8, 8), {}).save(tmp_path / "a.safetensors")
    LatentData(torch.randn(4, 4, 8, 8), {}).save(tmp_path / "other.safetensors")

    def write(**changes):
        suite = {
            "name": "own",
            "models": {"m": {"path": "ddpm", "data": "a.safetensors"}},
            "data": {"d": "a.safetensors"},
            "marks": {"kin": {"method": "likeness"}},
            "attacks": [{"attack": "noise", "std": 0.05}],
            "seeds": [0],
            "trials": 1,
            "quality": {"samples": 4},
        }
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(suite | changes))
        return tmp_path / "own.yaml"

    return write


def test_one_impossible_value_does_not_cost_the_other_cells(own, tmp_path):
    attacks = [{"attack": "finetune", "steps": 1, "lr": [-1.0]}, {"attack": "noise", "std": 0.05}]
    rows = run_suite(own(attacks=attacks), tmp_path / "out")
    found = {row["attack"]: row for row in rows if row["kind"] == "cell"}
    assert found["finetune"]["verdict"] == "failed" and "learning rate" in found["finetune"]["error"]
    assert found["noise"]["verdict"] == "verified"


def test_what_a_killed_run_left_half_made_goes(own, tmp_path):
    left = tmp_path / "out" / "marks" / ".partial-x"
    left.mkdir(parents=True)
    run_suite(own(), tmp_path / "out")
    assert not left.exists() and any(left.parent.iterdir())


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"data": {"d": "other.safetensors"}}, DataError, "do not fit 'ddpm'"),
        ({"data": {"d": {"folder": "empty"}}}, DataError, "not a readable folder"),
        ({"models": {"m": {"path": "a.safetensors", "data": "a.safetensors"}}}, DataError, "no pipeline folder"),
        ({"models": {"m": {"path": "empty", "data": "a.safetensors"}}}, DataError, "no pipeline folder"),
    ],
)
def test_models_and_data_are_opened_before_anything_is_made(own, tmp_path, change, error, match):
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=match):
        run_suite(own(**change), tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {".lock"}


def test_a_marked_folder_of_another_architecture(own, tmp_path):
    DDPMPipeline(tiny_unconditional(layers_per_block=2), DDPMScheduler()).save_pretrained(tmp_path / "marked")
    WatermarkKey.generate("Owner").save(tmp_path / "demo.key")
    marks = {"shipped": {"method": "aiao", "marked": "marked", "key": "demo.key", "keys": 1}}
    with pytest.raises(ConfigError, match="another architecture"):
        run_suite(own(marks=marks), tmp_path / "out")


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_of():
    with pytest.raises(ResultsError, match="a process of this run was killed"):
        list(_each(os._exit, [(3,), (3,)], 2))


@pytest.mark.slow
def test_processes_end_with_a_run_that_is_killed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import time\n"
        "from aiao_diffusers.bench.suite.runner import _each\n"
        "if __name__ == '__main__':\n"
        "    list(_each(time.sleep, [(600,)] * 3, 2))\n"
    )
    with subprocess.Popen([sys.executable, program]) as run:
        limit, workers = time.time() + 120, []
        while len(workers) < 2:
            assert run.poll() is None and time.time() < limit
            # The one child that is no worker is the tracker of multiprocessing's resources.
            workers = [p for p in psutil.Process(run.pid).children() if "spawn_main" in " ".join(p.cmdline())]
            time.sleep(0.2)
        time.sleep(15)  # for imports and the first task
        run.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=60)
    for process in alive:
        process.kill()
    assert not alive
