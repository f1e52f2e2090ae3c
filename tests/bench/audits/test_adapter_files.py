"""Writers of adapters: what a stock library reads back is the change that was written."""

import pytest
import torch
from safetensors.torch import load_file

from aiao_diffusers.bench.audits import fuzz
from aiao_diffusers.bench.audits.adapter_files import ADAPTERS, write_kohya


@pytest.fixture(scope="module")
def change():
    return fuzz.small_change(fuzz.small_unet())


def test_every_format_has_a_name_of_its_own():
    names = [fmt.name for fmt in ADAPTERS]
    assert len(names) == len(set(names)) > 20


def test_kohya_keys_hold_the_factors_of_every_module(change, tmp_path):
    state = load_file(write_kohya(change, tmp_path))
    for module, (down, up) in change.factors.items():
        stem = "lora_unet_" + module.replace(".", "_")
        alpha, rank = state[f"{stem}.alpha"], down.shape[0]
        product = state[f"{stem}.lora_up.weight"].flatten(1) @ state[f"{stem}.lora_down.weight"].flatten(1)
        assert torch.allclose(product * alpha / rank, up.flatten(1) @ down.flatten(1), rtol=1e-4, atol=1e-6)
    denoiser = {key.split(".")[0] for key in state if not key.startswith("lora_te_")}
    assert denoiser == {"lora_unet_" + module.replace(".", "_") for module in change.factors}
