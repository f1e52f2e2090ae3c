"""Rows of an adapter's change, from the file alone, against the change itself in every spelling and algorithm."""

import json
from pathlib import Path

import pytest
import torch
from _tiny import ATTENTION, LINEAR, factors, tiny_unet, write
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from aiao_diffusers.errors import NotTestableError, SuspectError, UnsafeFileError, WrongBaseError
from aiao_diffusers.formats.lora import apply_lora
from aiao_diffusers.formats.row_space import read_row_spaces


QUERY, PROJECTION = f"{ATTENTION}.attn1.to_q", "down_blocks.0.attentions.0.proj_in"
FORMATS = ("kohya", "kohya-ldm", "peft", "diffusers-metadata", "diffusers-down-up", "diffusers-old", "comfy-ldm")


def gram(rows: torch.Tensor) -> torch.Tensor:
    """What rows tell of inputs, without their scale."""
    product = rows.flatten(1).double().T @ rows.flatten(1).double()
    return product / product.norm()


def blank() -> nn.Module:
    with init_empty_weights():
        return UNet2DConditionModel.from_config(tiny_unet().config)


@pytest.mark.parametrize("fmt", FORMATS)
def test_rows_are_those_of_the_change_in_every_spelling(fmt, tmp_path):
    made = factors(tiny_unet(), LINEAR, 3)
    found = read_row_spaces(write(tmp_path, fmt, made, 2.0), blank(), LINEAR)
    assert found.rows.keys() == set(LINEAR) and not found.unread
    for name, (down, up) in made.items():
        assert len(found.rows[name]) <= 3
        torch.testing.assert_close(gram(found.rows[name]), gram(up @ down))


def trained(config, folder: Path) -> Path:
    """peft's own file of an adapter on two layers, all factors drawn at random."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_unet(), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data = torch.randn(parameter.shape) * 0.2
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig, LoraConfig])
def test_loha_lokr_and_convolutions_are_read_by_their_full_change(config, tmp_path):
    folder, unet = trained(config(r=2, target_modules=[QUERY, PROJECTION]), tmp_path), tiny_unet()
    found = read_row_spaces(folder, blank(), [QUERY, PROJECTION])
    for name in (QUERY, PROJECTION):
        before = unet.get_submodule(name).weight.double()
        with apply_lora(unet, folder):
            change = unet.get_submodule(name).weight.double() - before
        torch.testing.assert_close(gram(found.rows[name]), gram(change), atol=1e-5, rtol=1e-4)


def test_a_dora_is_read_by_what_was_trained_on_inputs(tmp_path):
    plain = read_row_spaces(trained(LoraConfig(r=2, target_modules=[QUERY]), tmp_path / "lora"), blank(), [QUERY])
    found = read_row_spaces(
        trained(LoraConfig(r=2, target_modules=[QUERY], use_dora=True), tmp_path / "dora"), blank(), [QUERY]
    )
    torch.testing.assert_close(gram(found.rows[QUERY]), gram(plain.rows[QUERY]))


def test_a_full_difference_and_a_rank_above_the_width(tmp_path):
    change = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    save_file({f"diffusion_model.{QUERY}.diff": change}, tmp_path / "diff.safetensors")
    found = read_row_spaces(tmp_path / "diff.safetensors", blank(), [QUERY])
    torch.testing.assert_close(gram(found.rows[QUERY]), gram(change))
    made = factors(tiny_unet(), (QUERY,), 40)
    down, up = made[QUERY]
    found = read_row_spaces(write(tmp_path, "kohya", made, 40.0), blank(), [QUERY])
    assert found.rows[QUERY].shape == (8, 8)
    torch.testing.assert_close(gram(found.rows[QUERY]), gram(up @ down))


def test_the_smallest_numbers_do_not_vanish(tmp_path):
    made = {name: (down * 1e-30, up * 1e-30) for name, (down, up) in factors(tiny_unet(), (QUERY,), 3).items()}
    found = read_row_spaces(write(tmp_path, "kohya", made, 3.0), blank(), [QUERY])
    torch.testing.assert_close(gram(found.rows[QUERY]), gram(made[QUERY][1].double() @ made[QUERY][0].double()))


def test_what_says_nothing_of_inputs_is_named(tmp_path):
    folder = trained(OFTConfig(oft_block_size=4, target_modules=[QUERY]), tmp_path / "oft")
    found = read_row_spaces(folder, blank(), [QUERY])
    assert not found.rows and "oft" in found.unread[QUERY]
    made = factors(tiny_unet(), LINEAR[:2], 2)
    made[QUERY] = (made[QUERY][0], torch.zeros_like(made[QUERY][1]))
    found = read_row_spaces(write(tmp_path, "kohya", made, 2.0), blank(), LINEAR)
    assert found.rows.keys() == {LINEAR[1]} and found.unread == {QUERY: "its change is zero"}


def test_broken_files_raise_as_where_they_are_applied(tmp_path):
    made = factors(tiny_unet(), (QUERY,), 2)
    down, up = made[QUERY]
    with pytest.raises(WrongBaseError, match="shape"):
        read_row_spaces(write(tmp_path, "kohya", {QUERY: (up, down)}, 2.0), blank(), [QUERY])
    with pytest.raises(NotTestableError, match="NaN"):
        read_row_spaces(write(tmp_path, "kohya", {QUERY: (down * torch.nan, up)}, 2.0), blank(), [QUERY])
    with pytest.raises(SuspectError):
        read_row_spaces(tmp_path / "none.safetensors", blank(), [QUERY])
    (tmp_path / "x.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeFileError):
        read_row_spaces(tmp_path / "x.bin", blank(), [QUERY])
    (tmp_path / "pissa").mkdir()
    folder = write(tmp_path / "pissa", "peft", made, 2.0)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
    with pytest.raises(NotTestableError, match="altered base"):
        read_row_spaces(folder, blank(), [QUERY])
