"""What the libraries below raise on files that do not fit is caught; Ctrl-C and a full memory are not."""

import pytest
from _tiny import tiny_unet
from diffusers import UNet2DConditionModel

from aiao_diffusers.formats.upstream import UPSTREAM_ERRORS


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {"down_block_types": ("Evil",)},
        {"norm_num_groups": 0},
        {"block_out_channels": "x"},
        {"attention_head_dim": None, "num_attention_heads": 3},
    ],
)
def test_configs_that_do_not_fit(config):
    with pytest.raises(UPSTREAM_ERRORS):
        UNet2DConditionModel.from_config(dict(tiny_unet().config) | config)


def test_files_that_are_none(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\x01\x02\x03")
    with pytest.raises(UPSTREAM_ERRORS):
        UNet2DConditionModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)


def test_what_must_pass_through():
    for error in (KeyboardInterrupt, MemoryError, SystemExit):
        assert not issubclass(error, UPSTREAM_ERRORS)
