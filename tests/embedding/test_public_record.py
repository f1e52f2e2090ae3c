"""The record that embedding publishes: the same embedding gives the same record, in any process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _tiny import LEARN, learner
from diffusers import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler

from aiao_diffusers import EmbedConfig, WatermarkKey
from aiao_diffusers.denoiser.hashes import weights_sha256
from aiao_diffusers.denoiser.sites import trace_on
from aiao_diffusers.embedding.public_record import make_record
from aiao_diffusers.embedding.subject import CleanTwin, Subject, observe_clean_twin
from aiao_diffusers.mark.record import WatermarkRecord
from aiao_diffusers.verification.reference import observe


KEY = WatermarkKey(bytes(range(32)), "Demo")


def record() -> WatermarkRecord:
    unet, data, scheduler = learner()
    subject = Subject(unet, scheduler, data, tuple(trace_on(unet, data)), EmbedConfig())
    return make_record(subject, KEY, CleanTwin("00" * 32, observe(unet, data, scheduler.config), {}))


def test_it_commits_to_the_key_and_names_no_secret():
    made = record()
    assert made.belongs_to(KEY) and not made.belongs_to(KEY.child("other"))
    assert KEY.secret.hex() not in json.dumps(made.scheduler) + made.owner + made.commitment


@pytest.mark.parametrize("sampler", [DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler])
def test_infinite_bounds_of_a_sampler_do_not_reach_the_file(sampler, tmp_path):
    unet, data, _ = learner()
    subject = Subject(unet, sampler(), data, tuple(trace_on(unet, data)), EmbedConfig(**LEARN))
    assert any(value == float("-inf") for value in subject.schedule.values())
    make_record(subject, KEY, CleanTwin("00" * 32, None, {})).save(tmp_path)
    assert WatermarkRecord.load(tmp_path).schedule.steps == 1000


@pytest.mark.slow
def test_it_does_not_depend_on_the_order_of_a_set():
    """diffusers lists the defaults that a scheduler used in the order of a set, by the process's hash seed."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_public_record as t; r = t.record(); print(r.sha256, r.scheduler['_use_default_values'])"
    told = []
    for seed in ("1", "2"):
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        done = subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent)],
            env=env,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    assert told[0] == told[1] and len(told[0].split()) > 4


def test_it_names_both_models_and_carries_no_secret(tmp_path):
    unet, data, scheduler = learner()
    subject = Subject(unet, scheduler, data, trace_on(unet, data), EmbedConfig(**LEARN))
    twin = observe_clean_twin(subject, None)
    with torch.no_grad():
        unet.conv_in.weight += 1
    record = make_record(subject, KEY, twin)
    assert (record.teacher_sha256, record.marked_sha256) == (twin.sha256, weights_sha256(unet))
    assert record.teacher_sha256 != record.marked_sha256 and record.reference_sha256 == twin.reference.sha256
    assert record.belongs_to(KEY) and not record.belongs_to(KEY.child("other"))
    assert (record.sites, record.in_sites, record.out_sites, record.pairs) == (len(subject.sites), 2, 3, False)
    assert len(record.bank) == LEARN["bank_size"]
    assert all(any(torch.equal(one, other) for other in data.latents) for one in record.bank.latents)
    assert make_record(subject, KEY, twin).sha256 == record.sha256
    record.save(tmp_path)
    text = (tmp_path / "aiao" / "watermark.json").read_text()
    assert KEY.secret.hex() not in text and json.loads(text)["commitment"] == KEY.commitment
    assert WatermarkRecord.load(tmp_path).factors == record.factors
    # The gains are those of all candidates, whatever key was used.
    assert make_record(subject, KEY.child("other"), twin).loudness == record.loudness
