"""LyCORIS as the oracle: files that it writes, and the output that it computes."""

from pathlib import Path

import pytest
import torch
from _kind import extra
from _tiny import CONV, LINEAR, run, tiny_unet
from safetensors.torch import load_file, save_file
from torch import nn

from aiao_diffusers.errors import NotTestableError
from aiao_diffusers.formats.lora import apply_lora, check_adapter_fits


lycoris = extra("lycoris")
PRESET = {"target_module": ["Attention", "ResnetBlock2D", "Downsample2D"], "name_algo_map": {}}


@pytest.mark.slow
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
        {"algo": "glora"},
        {"algo": "diag-oft"},
        {"algo": "diag-oft", "rescaled": True, "constraint": 0.05},
        {"algo": "boft"},
        {"algo": "boft", "rescaled": True, "constraint": 0.05},
    ],
    ids=str,
)
def test_equals_the_trainer(tmp_path, options):
    check_equal(tmp_path, options, 1.0)


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "glora", "diag-oft", "boft"])
def test_equals_the_trainer_at_another_scale(tmp_path, algorithm):
    check_equal(tmp_path, {"algo": algorithm, "factor": 2}, 0.5)


def check_equal(tmp_path: Path, options: dict, scale: float) -> None:
    unet, bare = tiny_unet(), run(tiny_unet())
    trained, state = train(options, scale)
    save_file(state, tmp_path / "x.safetensors")
    with apply_lora(unet, tmp_path / "x.safetensors", scale) as loaded:
        torch.testing.assert_close(run(unet), trained, rtol=0, atol=2e-5)
    assert (trained - bare).abs().max() > 1e-2 and not loaded.unused_keys and not loaded.warnings
    assert loaded.kind in ("kohya", "dora", "diff", options["algo"].removeprefix("diag-"))
    check_adapter_fits({k: tuple(v.shape) for k, v in state.items()}, tiny_unet().to("meta"), "x")
    assert torch.equal(run(unet), bare)


def train(options: dict, scale: float = 1.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What a random adapter of LyCORIS makes of the tiny U-Net's output, by its training forward, and its file."""
    trained, state = make(options, scale)
    return run(trained), state


def make(options: dict, scale: float = 1.0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The tiny U-Net with a random adapter of LyCORIS around it, and the adapter's file."""
    trained = tiny_unet()
    lycoris.LycorisNetwork.apply_preset(PRESET)
    sizes = {"linear_dim": 3, "linear_alpha": 2, "conv_dim": 2, "conv_alpha": 1}
    net = lycoris.create_lycoris(trained, scale, **{**sizes, **options})
    net.apply_to()  # only now are its modules registered
    generator = torch.Generator().manual_seed(3)
    for name, parameter in net.named_parameters():
        if "dora_scale" in name:
            parameter.data *= 1 + 0.3 * torch.rand(parameter.shape, generator=generator)
        elif "rescale" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
        else:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return trained, {k: v.detach().contiguous().clone() for k, v in net.state_dict().items()}


def test_oft_of_sd_scripts_is_that_of_lycoris_under_another_prefix(tmp_path):
    trained, state = train({"algo": "diag-oft", "constraint": 0.05})
    renamed = {k.replace("lycoris_", "oft_unet_"): v for k, v in state.items()}
    save_file(renamed, tmp_path / "x.safetensors")
    unet = tiny_unet()
    with apply_lora(unet, tmp_path / "x.safetensors") as loaded:
        torch.testing.assert_close(run(unet), trained, rtol=0, atol=2e-5)
    assert loaded.kind == "oft"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["tlora", "ia3"])
def test_algorithms_that_are_not_read_are_named(tmp_path, algorithm):
    _, state = make({"algo": algorithm})
    save_file(state, tmp_path / "x.safetensors")
    with (
        pytest.raises(NotTestableError, match=r"not read here: (T-LoRA|IA3)"),
        apply_lora(tiny_unet(), tmp_path / "x.safetensors"),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"algo": "lora"}, {"algo": "loha"}, {"algo": "lokr", "factor": 2}], ids=str)
@pytest.mark.parametrize(("names", "role"), [("kohya", "diff_b"), ("diffusion_model.", "b_norm")])
def test_a_difference_of_biases_beside_factors(tmp_path, options, names, role):
    """ComfyUI's extractor and trainer write it by default; peft's bias at scale 1 is the same sum."""
    trained, state = train(options)
    unet, generator = tiny_unet(), torch.Generator().manual_seed(5)
    by_stem = {
        f"lycoris_{n.replace('.', '_')}": n for n, m in unet.named_modules() if getattr(m, "bias", None) is not None
    }
    shifts = {stem: torch.randn(unet.get_submodule(n).bias.shape, generator=generator) for stem, n in by_stem.items()}
    shifts = {stem: shift for stem, shift in shifts.items() if any(k.startswith(f"{stem}.") for k in state)}
    wanted = tiny_unet()
    for stem, shift in shifts.items():
        wanted.get_submodule(by_stem[stem]).bias.data += shift
    save_file(state, tmp_path / "plain.safetensors")
    with apply_lora(wanted, tmp_path / "plain.safetensors"):
        expected = run(wanted)
    state |= {f"{stem}.{role}": shift for stem, shift in shifts.items()}
    if names != "kohya":
        plain = {f"lycoris_{n.replace('.', '_')}": n for n, m in unet.named_modules() if n}
        state = {f"{names}{plain[k.partition('.')[0]]}.{k.partition('.')[2]}": v for k, v in state.items()}
    save_file(state, tmp_path / "x.safetensors")
    with apply_lora(unet, tmp_path / "x.safetensors") as loaded:
        torch.testing.assert_close(run(unet), expected, rtol=0, atol=1e-6)
    assert len(shifts) > 2 and not loaded.unused_keys and not loaded.warnings
    assert (expected - trained).abs().max() > 1e-2


class TestOldGlora:
    """LyCORIS before 3 wrote a1 (rank, in), a2 (in, rank), b1 (rank, in) and b2 (out, rank)."""

    def write(self, folder: Path, name: str, rank: int, old: bool = True, dims: int = 2) -> Path:
        weight = tiny_unet().get_submodule(name).weight
        out, inner = weight.shape[:2]
        new = {"a1": (inner, rank), "a2": (rank, inner), "b1": (out, rank), "b2": (rank, inner)}
        turned = {"a1": (rank, inner), "a2": (inner, rank), "b1": (rank, inner), "b2": (out, rank)}
        tail = (1,) * (dims - 2)
        stem = f"lora_unet_{name.replace('.', '_')}"
        shapes = turned if old else new
        state = {f"{stem}.{role}.weight": torch.ones(*shape, *tail) for role, shape in shapes.items()}
        save_file({**state, f"{stem}.alpha": torch.tensor(1.0)}, folder / "x.safetensors")
        return folder / "x.safetensors"

    @pytest.mark.parametrize(("name", "dims"), [(LINEAR[0], 2), (LINEAR[2], 2), (CONV[1], 4)])
    def test_is_refused_by_name_before_and_after_a_download(self, tmp_path, name, dims):
        path = self.write(tmp_path, name, 2, dims=dims)
        shapes = {k: tuple(v.shape) for k, v in load_file(path).items()}
        for call in (
            lambda: apply_lora(tiny_unet(), path).__enter__(),
            lambda: check_adapter_fits(shapes, tiny_unet().to("meta"), "x"),
        ):
            with pytest.raises(NotTestableError, match="GLoRA as LyCORIS wrote it before version 3"):
                call()

    def test_that_of_today_is_not(self, tmp_path):
        for name, dims in ((LINEAR[0], 2), (LINEAR[2], 2), (CONV[1], 4)):
            with apply_lora(tiny_unet(), self.write(tmp_path, name, 2, old=False, dims=dims)) as loaded:
                assert loaded.kind == "glora"

    def test_nor_is_it_taken_for_that_of_today_where_a_square_of_full_rank_could_be_either(self, tmp_path):
        with (
            pytest.raises(NotTestableError, match="GLoRA"),
            apply_lora(tiny_unet(), self.write(tmp_path, LINEAR[0], 8)),
        ):
            pass
