"""GGUF files load whole or not at all, with the numbers that their own library unpacks."""

import importlib.util
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from _kind import extra
from _tiny import ldm_state, tiny_unet
from diffusers import UNet2DConditionModel
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import NotTestableError, UnsafeFileError, WrongBaseError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import LDM_PREFIX, detect
from aiao_diffusers.formats.gguf import MAX_ENTRIES, SHAPE_FIELD, read_gguf_header, unpack
from aiao_diffusers.formats.module_names import ldm_names


K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
PACKINGS = ("F16", "BF16", "Q8_0", "Q5_1", "Q4_0", *K_QUANTS)
State = dict[str, torch.Tensor]


def wide_unet(seed: int = 0) -> UNet2DConditionModel:
    """One level of 32 channels: its rows hold whole blocks of 32 numbers, and some weights whole blocks of 256."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=12,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def original(unet: nn.Module) -> State:
    """The whole U-Net in original keys, for `wide_unet`, of which `ldm_state` has no table."""
    state = unet.state_dict()
    names = ldm_names({name.rpartition(".")[0] for name in state})
    split = {name: name.rpartition(".") for name in state}
    return {f"{LDM_PREFIX}{names[module]}.{leaf}": state[name] for name, (module, _, leaf) in split.items()}


def write(path: Path, state: State, packing: str = "F32", *, regroup: bool = False, shape: object = None) -> Path:
    """A GGUF file; weights whose rows do not fit the packing are stored in F32.

    Args:
        regroup: as ComfyUI-GGUF's converter, which stores what rows of 256 do not fit as (n / 256, 256) and notes the shape.
        shape: noted in place of the true one.
    """
    import gguf

    kind = gguf.GGMLQuantizationType[packing]
    writer = gguf.GGUFWriter(path, "sd1")
    for key, tensor in state.items():
        values = tensor.float().numpy()
        if regroup and values.ndim > 1 and values.size >= 512 and values.size % 256 == 0 and values.shape[-1] % 256:
            writer.add_array(SHAPE_FIELD + key, list(shape or values.shape))
            values = values.reshape(-1, 256)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        fits = values.ndim > 1 and values.shape[-1] % block == 0
        if packing in K_QUANTS and fits:  # the library unpacks these and does not pack them: any bytes are numbers
            rng = np.random.default_rng(values.size)
            raw = rng.integers(0, 256, (*values.shape[:-1], values.shape[-1] // block * size), dtype=np.uint8)
            raw[np.isin(raw, (0x7B, 0x7C, 0x7D, 0x7E, 0x7F, 0xFB, 0xFC, 0xFD, 0xFE, 0xFF))] = (
                1  # no scale is Inf or NaN
            )
            writer.add_tensor(key, raw, raw_dtype=kind)
        else:
            there = kind if fits else gguf.GGMLQuantizationType.F32
            writer.add_tensor(key, gguf.quantize(values, there), raw_dtype=there)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def unpacked(path: Path, like: State) -> State:
    """The oracle: what the library's own reader and unpacking give, in the shapes of `like`."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    found = {t.name: torch.from_numpy(np.array(gguf.dequantize(t.data, t.tensor_type), np.float32)) for t in tensors}
    return {name: found[name].reshape(value.shape) for name, value in like.items()}


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


class TestWhole:
    def test_gguf(self, tmp_path, unet):
        path = tmp_path / "x.gguf"
        path.write_bytes(b"GGUF")
        assert detect(path).kind == "single_file"
        if importlib.util.find_spec("gguf") is None:
            with pytest.raises(NotTestableError, match="install the package gguf"):
                load_denoiser(path, base=unet)
            return
        with pytest.raises(UnsafeFileError, match="no sound GGUF"):
            load_denoiser(path, base=unet)
        other = tiny_unet(seed=5)
        assert tensor_sha256(load_denoiser(write(path, ldm_state(other)), base=unet)) == tensor_sha256(other)
        extra = {"model.diffusion_model.input_blocks.9.0.op.weight": torch.ones(8, 8)}
        for state in ({"elsewhere.weight": torch.ones(2, 2)}, ldm_state(other) | extra):
            with pytest.raises(WrongBaseError, match="numbers of a denoiser"):
                load_denoiser(write(path, state), base=unet)


class TestPackings:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("names", "packing"),
        [
            *((names, packing) for names in ("original", "diffusers") for packing in PACKINGS),
            *((names, "Q8_0") for names in ("original with prefix", "wrapped")),
        ],
    )
    @pytest.mark.parametrize("regroup", [True, False], ids=["rows of 256", "rows as they are"])
    def test_the_numbers_are_the_library_s(self, tmp_path, names, packing, regroup):
        other = wide_unet(seed=5)
        state = other.state_dict()
        if names.startswith("original"):
            state = original(other)
            state = state if "prefix" in names else {k.removeprefix(LDM_PREFIX): v for k, v in state.items()}
        elif names == "wrapped":
            state = {f"model.diffusion_model.{k}": v for k, v in state.items()}
        path = write(tmp_path / "x.gguf", state, packing, regroup=regroup)
        header = read_gguf_header(path)
        expected = unpacked(path, state)
        if regroup or packing not in K_QUANTS:
            assert sum(info.dtype == packing for info in header.tensors.values()) > 3  # not all in F32
        assert {k: info.shape for k, info in header.tensors.items()} == {k: tuple(v.shape) for k, v in state.items()}
        found = dict(unpack(header, {key: key for key in header.tensors}))
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        model, oracle = load_denoiser(path, base=wide_unet()), wide_unet()
        back = dict(zip(state, other.state_dict(), strict=True))
        oracle.load_state_dict({back[key]: value for key, value in expected.items()})
        assert tensor_sha256(model) == tensor_sha256(oracle)

    def test_diffusers_names_of_a_widened_denoiser(self, tmp_path):
        config = {k: v for k, v in tiny_unet().config.items() if not k.startswith("_")}
        wide = UNet2DConditionModel.from_config({**config, "in_channels": 9})
        path = write(tmp_path / "x.gguf", wide.state_dict())
        assert tensor_sha256(load_denoiser(path, base=tiny_unet())) == tensor_sha256(wide)

    def test_a_noted_shape_of_another_size(self, tmp_path, unet):
        path = write(tmp_path / "x.gguf", wide_unet().state_dict(), "Q4_0", regroup=True, shape=(3, 5))
        with pytest.raises(UnsafeFileError, match="orig_shape"):
            load_denoiser(path, base=unet)

    def test_a_noted_shape_in_another_order_fits_no_model(self, tmp_path):
        path = write(
            tmp_path / "x.gguf", {"conv_in.weight": torch.ones(32, 4, 4, 3)}, regroup=True, shape=(4, 32, 3, 4)
        )
        assert read_gguf_header(path).tensors["conv_in.weight"].shape == (4, 32, 3, 4)
        with pytest.raises(WrongBaseError):
            load_denoiser(path, base=wide_unet())

    def test_a_pointer(self, tmp_path, unet):
        path = tmp_path / "x.gguf"
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n")
        with pytest.raises(UnsafeFileError, match="is a git-lfs pointer"):
            load_denoiser(path, base=unet)


@pytest.mark.parametrize(
    ("count", "size"), [(2**62, 0), (10**7, 0), (MAX_ENTRIES + 1, MAX_ENTRIES + 1), (3, 0)], ids=lambda n: str(n)
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_list_that_is_longer_than_the_file_or_than_any_shape_is_refused_before_it_is_walked(
    tmp_path, count, size, order
):
    extra("gguf")
    name = SHAPE_FIELD.encode() + b"x"
    head = b"GGUF" + struct.pack(f"{order}IQQ", 3, 0, 1) + struct.pack(f"{order}Q", len(name)) + name
    path = tmp_path / "x.gguf"
    path.write_bytes(head + struct.pack(f"{order}IIQ", 9, 0, count) + bytes(size))
    spent = time.process_time()
    with pytest.raises(UnsafeFileError, match="no sound GGUF file"):
        read_gguf_header(path)
    assert time.process_time() - spent < 1


def test_lists_within_lists_and_lengths_of_strings_are_bounded_too(tmp_path):
    extra("gguf")
    path = tmp_path / "x.gguf"
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"x"
    deep = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000
    wide = struct.pack("<IIQ", 9, 9, 2) + struct.pack("<IQ", 0, MAX_ENTRIES) + bytes(MAX_ENTRIES)
    long = struct.pack("<IQ", 8, 2**63)
    unknown = struct.pack("<I", 99)
    for content in (deep, wide, long, unknown):
        path.write_bytes(start + content)
        with pytest.raises(UnsafeFileError, match="no sound GGUF file"):
            read_gguf_header(path)


def test_fields_of_every_kind_are_passed_over(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "sd1")
    writer.add_string("a", "words")
    writer.add_array("b", ["several", "words"])
    writer.add_array("c", [1, 2, 3])
    writer.add_bool("d", True)
    writer.add_float64("e", 0.5)
    writer.add_uint16("f", 7)
    writer.add_tensor("w", np.ones((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_gguf_header(tmp_path / "x.gguf").tensors["w"].shape == (2, 3)
