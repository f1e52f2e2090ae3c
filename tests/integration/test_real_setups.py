"""Verdicts on the shipped model as users run it, each with the unmarked base in the same set-up as its control."""

import importlib.util

import pytest
import torch
from _shipped import ASSETS
from accelerate import cpu_offload
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from torch import nn

from aiao_diffusers import WatermarkedStableDiffusionPipeline, WatermarkKey, WatermarkRecord, verify
from aiao_diffusers.formats.checkpoint import load_denoiser


KEY = WatermarkKey(bytes(range(32)), "Demo")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def record():
    return WatermarkRecord.load(ASSETS / "marked")


@pytest.fixture(scope="module")
def plain(record):
    return verify(ASSETS / "marked", KEY, record=record)


def half(unet):
    return unet.to(torch.bfloat16)


def offloaded(unet):
    cpu_offload(unet, execution_device=torch.device("cpu"))
    assert next(unet.parameters()).is_meta
    return unet


def quanto_int8(unet):
    from optimum.quanto import QTensor, freeze, qint8, quantize

    quantize(unet, weights=qint8)
    freeze(unet)
    assert any(isinstance(p, QTensor) for p in unet.parameters())
    return unet


def torchao_int8(unet):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(unet, Int8WeightOnlyConfig())
    assert any(type(p.data) is not torch.Tensor for p in unet.parameters())
    return unet


def checkpointed(unet):
    unet.enable_gradient_checkpointing()
    return unet.train()


SETUPS = [half, offloaded, checkpointed, quanto_int8]
# Its import is heavy, so it is no development dependency; where it is installed, it is tested.
if importlib.util.find_spec("torchao") is not None:
    SETUPS.append(torchao_int8)


@pytest.mark.parametrize("setup", SETUPS)
def test_reads_as_the_plain_model(setup, record, plain):
    suspect = setup(load_denoiser(ASSETS / "marked", dtype=torch.float32))
    report = verify(suspect, KEY, record=record)
    assert report.verdict == "verified" and report.denoiser_evals == plain.denoiser_evals
    assert abs(report.log10_p - plain.log10_p) < 0.1 * abs(plain.log10_p)
    assert suspect.training == (setup is checkpointed)
    control = verify(setup(load_denoiser(ASSETS / "base", dtype=torch.float32)), KEY, record=record, trials=1)
    assert control.verdict == "not_verified" and control.log10_p > -5


class TestPipelines:
    def test_controlnet(self, record, plain):
        pipe = WatermarkedStableDiffusionPipeline.from_pretrained(ASSETS / "marked")
        small = {"conditioning_embedding_out_channels": (8, 16, 32)}
        controlnet = ControlNetModel.from_unet(pipe.unet, load_weights_from_unet=False, **small)
        loaded = StableDiffusionControlNetPipeline(
            **pipe.components, controlnet=controlnet, requires_safety_checker=False
        )
        report = verify(loaded, KEY, record=record)
        assert report.verdict == "verified" and report.log10_p == plain.log10_p
        assert report.hashes["suspect"] == report.hashes["marked"]

    def test_active_adapter(self, record):
        pipe = WatermarkedStableDiffusionPipeline.from_pretrained(ASSETS / "marked")
        pipe.load_lora_weights(ASSETS / "lora", adapter_name="style")
        report = verify(pipe, KEY)
        from_file = verify(ASSETS / "lora", KEY, base=ASSETS / "marked", record=record)
        assert report.verdict == "verified" and any("['style'] are active" in text for text in report.warnings)
        assert report.sites == from_file.sites
        pipe.set_adapters(["style"], [0.0])
        assert verify(pipe, KEY).sites == verify(ASSETS / "marked", KEY, record=record).sites

    def test_hashes_of_an_adapter(self, record):
        report = verify(ASSETS / "lora", KEY, base=ASSETS / "marked")
        assert report.hashes["base"] == report.hashes["marked"] != report.hashes["suspect"]
        assert report.hashes["suspect"] == report.adapter["sha256"] and report.hashes["record"] == record.sha256


def test_processors_replaced_after_loading(plain):
    """Whatever processors are installed when reading starts are the ones that run."""

    class Louder:
        def __init__(self, inner):
            self.inner, self.calls = inner, 0

        def __call__(self, *args, **kwargs):
            self.calls += 1
            return self.inner(*args, **kwargs)

    pipe = WatermarkedStableDiffusionPipeline.from_pretrained(ASSETS / "marked")
    replaced = {name: Louder(inner) for name, inner in pipe.unet.attn_processors.items()}
    pipe.unet.set_attn_processor(dict(replaced))
    report = pipe.verify(KEY)
    assert report.log10_p == plain.log10_p and any(p.calls for p in replaced.values())
    assert all(pipe.unet.attn_processors[name] is p for name, p in replaced.items())


def test_a_site_renamed_away_is_left_out(record):
    class Renamed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    unet = load_denoiser(ASSETS / "marked", dtype=torch.float32)
    gone = verify(unet, KEY, record=record).sites[0].name
    parent, _, leaf = gone.rpartition(".")
    setattr(unet.get_submodule(parent), leaf, Renamed(unet.get_submodule(gone)))
    report = verify(unet, KEY, record=record)
    assert report.verdict == "verified" and gone not in [s.name for s in report.sites]
    said = f"{record.out_sites - 1} of its {record.out_sites} out-sites"
    assert any(said in text for text in report.warnings)
