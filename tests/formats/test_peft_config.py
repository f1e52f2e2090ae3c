"""peft's adapter config: fields that change the algebra are refused, missing ones are peft's defaults."""

import json
from pathlib import Path

import pytest
import torch
from _tiny import ATTENTION, BOTH_LEVELS, CONV, factors, run, tiny_unet, write
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
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


class TestPatterns:
    @pytest.mark.parametrize(
        "patterns",
        [
            {"rank_pattern": {r"(?:down|mid)_blocks?\..*\.to_[qk]": 2}, "alpha_pattern": {r".*attn[12]\.to_q": 7}},
            {"rank_pattern": {r"conv1|to_q": 3}, "alpha_pattern": {r"[^.]+\.\d{1,2}\.conv1": 9, "to_(k|v)": 1}},
        ],
        ids=["wildcards", "alternatives"],
    )
    def test_regular_expressions_as_peft_reads_them(self, unet, tmp_path, patterns):
        config = LoraConfig(r=4, lora_alpha=3, target_modules=["to_q", "to_k", "conv1"], **patterns)
        wrapped = get_peft_model(tiny_unet(), config).eval()
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
        wrapped.save_pretrained(tmp_path)
        with apply_lora(unet, tmp_path):
            torch.testing.assert_close(run(unet), run(wrapped), rtol=0, atol=1e-5)
            assert (run(unet) - run(tiny_unet())).abs().max() > 0.1


class TestAlphasInTheHeader:
    """diffusers applies its own note alone; what another trainer notes is told where it would matter."""

    def adapter(self, tmp_path, metadata: dict[str, str]) -> Path:
        state = {}
        for name, (down, up) in factors(tiny_unet(), BOTH_LEVELS, 2).items():
            state |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        save_file(state, tmp_path / "pytorch_lora_weights.safetensors", metadata)
        return tmp_path / "pytorch_lora_weights.safetensors"

    def weights(self, source: Path) -> tuple[str, tuple[str, ...]]:
        unet = tiny_unet()
        with apply_lora(unet, source) as loaded:
            return tensor_sha256(unet), loaded.warnings

    @pytest.mark.parametrize(
        ("key", "value", "name"),
        [
            ("ss_network_alpha", "8.0", "ss_network_alpha"),
            ("lora_alpha", "8", "lora_alpha"),
            ("network_alphas", '{"alpha": 8}', "network_alphas.alpha"),
            ("ot_config", '{"lora_rank": 2, "lora_alpha": 8.0}', "ot_config.lora_alpha"),
            ("training_info", '{"network": {"linear_alpha": 8}}', "training_info.network.linear_alpha"),
        ],
    )
    def test_one_that_no_stock_loader_applies_is_told(self, tmp_path, key, value, name):
        plain, none = self.weights(self.adapter(tmp_path, {"format": "pt"}))
        source = self.adapter(tmp_path, {key: value})
        found, warnings = self.weights(source)
        assert found == plain and none == () and len(warnings) == 1
        assert f"says '{name}' = 8" in warnings[0]
        theirs = tiny_unet()
        theirs.load_lora_adapter(source, prefix="unet")
        unet = tiny_unet()
        with apply_lora(unet, source):
            torch.testing.assert_close(run(unet), run(theirs), rtol=0, atol=1e-5)

    def test_one_that_is_the_rank_is_no_news(self, tmp_path):
        assert self.weights(self.adapter(tmp_path, {"ss_network_alpha": "2.0"}))[1] == ()

    @pytest.mark.parametrize("value", ["{", '{"alpha": "x"}', '{"alpha": [1]}', "None", "[" * 5000, "NaN"])
    def test_notes_that_hold_no_number(self, tmp_path, value):
        assert self.weights(self.adapter(tmp_path, {"lora_alpha": value}))[1] == ()

    def test_that_of_diffusers_is_applied(self, tmp_path):
        config = {"unet.peft_type": "LORA", "unet.r": 2, "unet.lora_alpha": 8}
        source = self.adapter(tmp_path, {"lora_adapter_metadata": json.dumps(config)})
        found, warnings = self.weights(source)
        assert found != self.weights(self.adapter(tmp_path, {"format": "pt"}))[0] and warnings == ()


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
