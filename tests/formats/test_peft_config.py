"""peft's adapter config: fields that change the algebra are refused, missing ones are peft's defaults."""

import json
from pathlib import Path

import pytest
import torch
from _tiny import ATTENTION, BOTH_LEVELS, CONV, factors, run, tiny_unet, write
from peft import LoraConfig, PeftModel
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import NotTestableError, SuspectError
from aiao_diffusers.formats.lora import apply_lora


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


def refused(source: Path, unet: nn.Module, error: type, match: str, **options) -> None:
    before = tensor_sha256(unet)
    with pytest.raises(error, match=match), apply_lora(unet, source, **options):
        pass
    assert tensor_sha256(unet) == before


def edit(path: Path, drop: str | None = None, **fields: object) -> None:
    config = json.loads(path.read_text()) | fields
    config.pop(drop, None)
    path.write_text(json.dumps(config))


QUERY = f"{ATTENTION}.attn1.to_q"


BOTH = (QUERY, CONV[0])


class TestRefused:
    def test_modules_saved_in_full_beside_the_adapter(self, unet, tmp_path):
        source = write(tmp_path, "peft", factors(unet, BOTH_LEVELS, 2), 2.0)
        edit(source / "adapter_config.json", modules_to_save=["conv_in"])
        refused(source, unet, NotTestableError, "modules_to_save")

    def test_a_dora_without_magnitudes(self, unet, tmp_path):
        source = write(tmp_path, "peft", factors(unet, BOTH_LEVELS, 2), 2.0)
        edit(source / "adapter_config.json", use_dora=True)
        refused(source, unet, NotTestableError, "2 modules have no magnitude")


class TestScale:
    def test_an_alpha_that_the_config_leaves_out_is_that_of_peft(self, unet, tmp_path):
        made = factors(unet, BOTH_LEVELS, 2)
        source = write(tmp_path, "peft", made, 2.0)
        edit(
            source / "adapter_config.json",
            drop="lora_alpha",
            target_modules=["to_q", "conv1"],
            exclude_modules="^(?!(" + "|".join(BOTH_LEVELS) + ")$).*$",
        )
        theirs = PeftModel.from_pretrained(tiny_unet(), source)
        with apply_lora(unet, source):
            torch.testing.assert_close(run(unet), run(theirs), rtol=0, atol=1e-5)
        assert LoraConfig().lora_alpha == 8


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"peft_type": "IA3"}, NotTestableError),
            ({"layer_replication": [[0, 1]]}, NotTestableError),
            ({"init_lora_weights": "pissa_niter_4"}, NotTestableError),
            ({"alpha_pattern": {"(a+)+$": 3}}, NotTestableError),
            ({"r": 77}, SuspectError),
            ({"lora_alpha": "import os"}, SuspectError),
            ({"rank_pattern": [1]}, SuspectError),
        ],
        ids=str,
    )
    def test_adapter_config(self, unet, tmp_path, change, error):
        source = write(tmp_path, "peft", factors(unet, BOTH, 2), 2.0)
        path = source / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(error), apply_lora(unet, source):
            pass

    def test_native_peft_without_its_config_says_so(self, unet, tmp_path):
        source = write(tmp_path, "peft", factors(unet, BOTH, 2), 2.0)
        (source / "adapter_config.json").unlink()
        with apply_lora(unet, source) as loaded:
            assert "alpha is unknown" in loaded.warnings[0]
