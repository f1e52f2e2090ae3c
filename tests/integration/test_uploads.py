"""What people upload of the shipped models, each with its controls: the same of the clean twin, and another key."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _shipped import ASSETS, DEMO
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn

from aiao_diffusers import verify
from aiao_diffusers.formats.module_names import ldm_names
from aiao_diffusers.mark.record import WatermarkRecord


pytestmark = pytest.mark.slow

FEW = {"trials": 8, "amplitudes": (1.0,), "whiten": False}
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def record() -> WatermarkRecord:
    return WatermarkRecord.load(ASSETS / "marked")


@pytest.fixture(scope="module")
def models() -> dict[str, UNet2DConditionModel]:
    return {name: UNet2DConditionModel.from_pretrained(ASSETS / name / "unet") for name in ("marked", "base")}


def widen(unet: UNet2DConditionModel, channels: int, **changes: Any) -> UNet2DConditionModel:
    wide = UNet2DConditionModel.from_config({**unet.config, "in_channels": channels, **changes})
    state = wide.state_dict() | unet.state_dict()
    lacking = channels - unet.config.in_channels
    state["conv_in.weight"] = nn.functional.pad(unet.conv_in.weight.data, (0, 0, 0, 0, 0, lacking))
    wide.load_state_dict(state)
    return wide.eval()


def save_model(model: UNet2DConditionModel, path: Path, **fields: Any) -> Path:
    model.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))
    return path


def save_state(state: State, path: Path) -> Path:
    path = path.with_suffix(".safetensors")
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def prefixed(prefix: str) -> Callable[[UNet2DConditionModel, Path], Path]:
    return lambda unet, path: save_state({prefix + k: v for k, v in unet.state_dict().items()}, path)


def original(unet: UNet2DConditionModel) -> State:
    state = unet.state_dict()
    names = ldm_names({name.rpartition(".")[0] for name in state})
    split = {name: name.rpartition(".") for name in state}
    return {f"{names[module]}.{leaf}": state[name] for name, (module, _, leaf) in split.items()}


def save_gguf(state: State, path: Path, packing: str) -> Path:
    """As ComfyUI-GGUF's converter: in rows of 256 where a weight's own do not fit, its shape in a field."""
    import gguf

    path, kind = path.with_suffix(".gguf"), gguf.GGMLQuantizationType[packing]
    writer = gguf.GGUFWriter(path, "sd1")
    for key, tensor in state.items():
        values = tensor.float().numpy()
        if values.ndim > 1 and values.size % 256 == 0 and values.shape[-1] % 256:
            writer.add_array(f"comfy.gguf.orig_shape.{key}", list(values.shape))
            values = values.reshape(-1, 256)
        there = kind if values.ndim > 1 and values.shape[-1] % 32 == 0 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(key, gguf.quantize(values, there), raw_dtype=there)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


FOLDERS = {
    "inpainting": (lambda u, p: save_model(widen(u, 9), p), "it takes 9 channels"),
    "editing": (lambda u, p: save_model(widen(u, 8), p), "it takes 8 channels"),
    "classes": (lambda u, p: save_model(widen(u, 7, num_class_embeds=10), p), "it takes classes"),
    "guidance": (lambda u, p: save_model(widen(u, 4, time_cond_proj_dim=16), p), ""),
    "average": (lambda u, p: save_model(u, p, decay=0.9999, optimization_step=5_000_000), ""),
    "flax": (lambda u, p: save_model(u, p, _class_name="FlaxUNet2DConditionModel"), "read as 'UNet2DConditionModel'"),
    "no class": (lambda u, p: save_model(u, p, _class_name=None), "names no class"),
}
FILES = {
    "compiled": prefixed("_orig_mod."),
    "data parallel": prefixed("module.unet."),
    "diffusion_model": prefixed("diffusion_model."),
    "model.diffusion_model": prefixed("model.diffusion_model."),
    "inpainting": lambda u, p: save_state(widen(u, 9).state_dict(), p),
    "inpainting, original": lambda u, p: save_state(original(widen(u, 9)), p),
    "guidance": lambda u, p: save_state(widen(u, 4, time_cond_proj_dim=16).state_dict(), p),
    "guidance, original": lambda u, p: save_state(original(widen(u, 4, time_cond_proj_dim=16)), p),
    "gguf BF16, guidance, original": lambda u, p: save_gguf(original(widen(u, 4, time_cond_proj_dim=16)), p, "BF16"),
    "gguf Q8_0, original": lambda u, p: save_gguf(original(u), p, "Q8_0"),
    "gguf Q4_0, original": lambda u, p: save_gguf(original(u), p, "Q4_0"),
    "gguf Q5_1": lambda u, p: save_gguf(u.state_dict(), p, "Q5_1"),
    "gguf BF16, inpainting": lambda u, p: save_gguf(widen(u, 9).state_dict(), p, "BF16"),
}
ADAPTER = LoraConfig(r=2, target_modules=["to_q", "to_v"])
MEMORY = {
    "PeftModel": lambda u: get_peft_model(u, ADAPTER),
    "injected": lambda u: inject_adapter_in_model(ADAPTER, u),
    "half": lambda u: u.half(),
    "bfloat16": lambda u: u.bfloat16(),
    "inpainting": lambda u: widen(u, 9),
}


def check(make: Callable[[str], Any], record: WatermarkRecord, said: str = "", **options: Any) -> None:
    """Verified of the marked model; not of the clean one, and not by another key."""
    suspect = make("marked")
    report = verify(suspect, DEMO, record=record, **options, **FEW)
    assert report.verdict == "verified" and report.log10_p <= -30, (report.verdict, report.log10_p, report.reason)
    assert not said or any(said in text for text in report.warnings)
    for verdict in (
        verify(make("base"), DEMO, record=record, **options, **FEW),
        verify(suspect, DEMO.child("wrong"), record=record, **options, **FEW),
    ):
        assert verdict.verdict == "not_verified" and verdict.log10_p > -5


class TestUploads:
    @pytest.mark.parametrize("name", FOLDERS)
    def test_folders(self, models, record, tmp_path, name):
        write, said = FOLDERS[name]
        check(lambda which: write(models[which], tmp_path / which), record, said)

    @pytest.mark.parametrize("name", FILES)
    def test_bare_files(self, models, record, tmp_path, name):
        said = "it takes 9 channels" if "inpainting" in name else ""
        check(lambda which: FILES[name](models[which], tmp_path / which), record, said, base=ASSETS / "marked")

    @pytest.mark.parametrize("name", MEMORY)
    def test_in_memory(self, models, record, name):
        check(lambda which: MEMORY[name](copy.deepcopy(models[which])), record)

    @pytest.mark.parametrize("name", MEMORY)
    def test_as_the_base_of_an_adapter(self, models, record, name):
        for which, verdict in (("marked", "verified"), ("base", "not_verified")):
            base = MEMORY[name](copy.deepcopy(models[which]))
            report = verify(ASSETS / "lora", DEMO, base, record, **FEW)
            assert report.verdict == verdict and report.proves == ("carries" if verdict == "verified" else "nothing")
