"""LyCORIS as the oracle: files that it writes, and the output that it computes."""

import pytest
import torch
from _tiny import run, tiny_unet
from safetensors.torch import save_file

from aiao_diffusers.formats.lora import apply_lora


lycoris = pytest.importorskip("lycoris", reason="lycoris-lora is not installed: pip install 'aiao_diffusers[lycoris]'")
PRESET = {"target_module": ["Attention", "ResnetBlock2D", "Downsample2D"], "name_algo_map": {}}


@pytest.mark.parametrize(
    "options",
    [
        {"algo": "lora"},
        {"algo": "lora", "use_tucker": True},
        {"algo": "lora", "dora_wd": True},
        {"algo": "lora", "dora_wd": True, "wd_on_output": False},
        {"algo": "lora", "rs_lora": True},
        {"algo": "lora", "use_scalar": True},
        {"algo": "loha"},
        {"algo": "loha", "use_tucker": True},
        {"algo": "loha", "dora_wd": True},
        {"algo": "lokr", "factor": 2},
        {"algo": "lokr", "factor": 2, "use_tucker": True},
        {"algo": "lokr", "factor": 2, "decompose_both": True, "linear_dim": 1, "conv_dim": 1},
        {"algo": "lokr", "factor": 2, "full_matrix": True},
        {"algo": "full"},
        {"algo": "lora", "train_norm": True},
    ],
    ids=str,
)
def test_equals_the_trainer(tmp_path, options):
    unet, trained = tiny_unet(), tiny_unet()
    lycoris.LycorisNetwork.apply_preset(PRESET)
    sizes = {"linear_dim": 3, "linear_alpha": 2, "conv_dim": 2, "conv_alpha": 1}
    net = lycoris.create_lycoris(trained, 1.0, **{**sizes, **options})
    net.apply_to()  # only now are its modules registered
    generator = torch.Generator().manual_seed(3)
    for name, parameter in net.named_parameters():
        if "dora_scale" in name:
            parameter.data *= 1 + 0.3 * torch.rand(parameter.shape, generator=generator)
        else:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    state = {k: v.detach().contiguous().clone() for k, v in net.state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    bare = run(unet)
    expected = run(trained)
    with apply_lora(unet, tmp_path / "x.safetensors") as loaded:
        torch.testing.assert_close(run(unet), expected, rtol=0, atol=2e-5)
    assert (expected - bare).abs().max() > 1e-2 and not loaded.unused_keys and not loaded.warnings
    assert torch.equal(run(unet), bare)
