"""Embedding in real processes: killed, two at a time, and on a disk that is full."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _shipped import DEMO
from _tiny import LEARN, learner
from safetensors.torch import load_file

from aiao_diffusers import EmbedConfig, embed


TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

START = """
import sys
from pathlib import Path
sys.path.insert(0, {unit!r})
import inspect
import torch
from _tiny import LEARN, learner
from safetensors.torch import save_file
from aiao_diffusers.denoiser import price
from aiao_diffusers import EmbedConfig, WatermarkKey, embed, verify
KEY = WatermarkKey(bytes(range(32)), "Demo")
out = Path(sys.argv[1])
inspect.unwrap(price.predictions).__kwdefaults__["samples"] = 32  # as in conftest.py

def stop_at(wanted):
    def callback(step, row):
        print("step " + str(step) + "\\n", end="", flush=True)
        if step == wanted:
            raise KeyboardInterrupt
    return callback

def train(checkpoints=None, callback=None, **changes):
    unet, data, scheduler = learner()
    fields = LEARN | dict(steps=12, checkpoint_every=3, checkpoint_dir=checkpoints) | changes
    return unet, embed(unet, KEY, data, EmbedConfig(**fields), callback, scheduler=scheduler)

def weights(unet):
    return dict(unet.state_dict())
"""


def command(body: str, out: Path, *launcher: str) -> list[str]:
    out.mkdir(exist_ok=True)
    script = out / "script.py"
    script.write_text(START.format(unit=str(TESTS)) + body)
    return [sys.executable, *launcher, str(script), str(out)]


def uninterrupted(steps: int) -> dict[str, torch.Tensor]:
    """What one process makes of the same training, in this one."""
    unet, data, scheduler = learner()
    embed(unet, DEMO, data, EmbedConfig(**LEARN, steps=steps), scheduler=scheduler)
    return dict(unet.state_dict())


def finished(words: list[str], **environment: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_killed_in_the_middle_ends_with_the_same_weights(tmp_path):
    body = """
unet, report = train(out / "state", stop_at(0))
assert len(report.history) == 12
save_file(weights(unet), out / "final.safetensors")
"""
    killed = command(body, tmp_path / "killed")
    with subprocess.Popen(killed, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step 8"):
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "killed/state").glob("step-*")] == ["step-0000006"]
    again = finished(killed)
    assert "step 7\n" in again and "step 6\n" not in again
    a, b = load_file(tmp_path / "killed/final.safetensors"), uninterrupted(steps=12)
    assert a.keys() == b.keys() and all(torch.allclose(a[n], b[n], atol=1e-6) for n in a)
    assert not (tmp_path / "killed/state").exists()


def test_two_processes_agree_resume_and_mark(tmp_path):
    body = """
from accelerate import Accelerator
rank = Accelerator().process_index
assert Accelerator().num_processes == 2
unet, report = train(steps=40)
save_file(weights(unet), out / f"rank{rank}.safetensors")
wrong = verify(unet, KEY.child("wrong"), record=report.record).log10_p
assert verify(unet, KEY, record=report.record).verified and wrong > -5, wrong
whole, _ = train(steps=6)
try:
    train(out / "state", stop_at(5), steps=6)
except KeyboardInterrupt:
    pass
Accelerator().wait_for_everyone()
cut, report = train(out / "state", steps=6)
assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
print("rank " + str(rank) + " done\\n", end="", flush=True)  # in one write: two processes share the stream
"""
    words = command(body, tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    # What `accelerate launch --cpu` sets; without it accelerate takes every process for the only one.
    said = finished(words, ACCELERATE_USE_CPU="true")
    assert "rank 0 done" in said and "rank 1 done" in said
    a, b = (load_file(tmp_path / f"two/rank{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(a[n], b[n]) for n in a)
    # Two processes draw twice the data: another run than one process makes.
    one = uninterrupted(steps=40)
    assert any(not torch.allclose(a[n], one[n], atol=1e-4) for n in a)


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    # No file may grow beyond the limit: writes fail as on a full disk, by the kernel and not by a mock.
    body = """
import resource, tempfile
from aiao_diffusers.errors import TrainingError
from aiao_diffusers.pipeline import save_new

def limited(size, action):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        action()
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return None

tempfile.tempdir = str(out / "tmp")
Path(tempfile.tempdir).mkdir()
unet, data, scheduler = learner()
size = 4 * sum(p.numel() for p in unet.parameters())
name, text = limited(size // 2, lambda: train())
assert name == "TrainingError" and "TMPDIR" in text, (name, text)

def checkpointed():
    def callback(step, row):
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size, resource.RLIM_INFINITY))
    train(out / "state", callback)

name, text = limited(resource.RLIM_INFINITY, checkpointed)
assert name == "TrainingError" and "checkpoint" in text, (name, text)
assert [p.name for p in (out / "state").iterdir()] == ["step-0000003"]
assert len(train(out / "state")[1].history) == 12

assert limited(size // 2, lambda: save_new(unet, out / "model")) is not None
assert limited(100, lambda: data.save(out / "latents.safetensors")) is not None
assert list(Path(tempfile.tempdir).iterdir()) == []
"""
    finished(command(body, tmp_path / "full"))
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == ["script.py", "tmp"]
