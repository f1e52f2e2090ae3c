"""Which suspects a scan may take for copies of each other, what it reads as `verify` does, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _tiny import ldm_state, tiny_unet, widened
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from aiao_diffusers.bench.audits import format_files
from aiao_diffusers.errors import NotTestableError, WrongBaseError
from aiao_diffusers.files.safetensors_header import read_header
from aiao_diffusers.formats.artifact import Artifact
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import judge_header
from aiao_diffusers.formats.gguf import read_gguf_header
from aiao_diffusers.hub.candidates import Candidate
from aiao_diffusers.hub.remote import Remote, RemoteFile
from aiao_diffusers.scanning.resident import Resident, check_fits, file_key, place_on_base


@pytest.fixture(scope="module")
def base() -> Resident:
    return Resident(tiny_unet(0), "base")


def folder(root: Path, **changes: object) -> Candidate:
    """`tiny_unet(1)` as a folder whose config is changed; None takes a key out."""
    tiny_unet(1).save_pretrained(root)
    config = json.loads((root / "config.json").read_text()) | changes
    (root / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return suspect(root)


def suspect(source: Path) -> Candidate:
    """What the listing of a repository would say of a file or a denoiser's folder, headers read."""
    if source.is_dir():
        headers = tuple(map(read_header, sorted(source.glob("*.safetensors"))))
        files = tuple(Path(header.path.name) for header in headers)
        return Candidate("folder", "", Artifact("denoiser", Path(), files, headers, "config.json"))
    header = read_gguf_header(source) if source.suffix == ".gguf" else read_header(source)
    found = judge_header(replace(header, path=Path(source.name)))
    return Candidate(found.kind, source.name, found)


def digest(candidate: Candidate, root: Path, base: Resident) -> str:
    with place_on_base(candidate, root, "suspect", base) as put:
        return put.digest


@pytest.mark.slow
def test_equal_weights_under_another_config_are_another_suspect(tmp_path, base):
    plain = digest(folder(tmp_path / "a"), tmp_path / "a", base)
    assert digest(folder(tmp_path / "b", _name_or_path="elsewhere"), tmp_path / "b", base) == plain
    assert digest(folder(tmp_path / "c", act_fn="relu"), tmp_path / "c", base) != plain


def test_a_missing_config_key_has_the_default_of_the_class(tmp_path, base):
    """The base has four groups of norms; without the key, diffusers would build 32, which eight channels do not allow."""
    candidate = folder(tmp_path, act_fn=None)
    with place_on_base(candidate, tmp_path, "suspect", base) as put:
        assert put.opened.denoiser is base.denoiser  # the default is what the base has
    candidate = folder(tmp_path, norm_num_groups=None)
    with pytest.raises(Exception, match=r"norm_num_groups|num_groups|cannot be built"):
        digest(candidate, tmp_path, base)


@pytest.mark.parametrize(("name", "match"), [("conv_in.weight", r"conv_in\.weight.*I8"), ("conv_in.bias", "int8")])
def test_packed_integers_are_not_taken_for_floats(tmp_path, base, name, match):
    candidate = folder(tmp_path)
    file = tmp_path / candidate.weights[0]
    state = load_file(file)
    state[name] = torch.ones_like(state[name], dtype=torch.int8)
    save_file(state, file)
    with pytest.raises(NotTestableError, match=match):
        digest(candidate, tmp_path, base)


def test_the_name_by_which_peft_reads_a_file_is_part_of_its_key():
    files = {name: RemoteFile(8, sha256="ab") for name in ("adapter_model.safetensors", "lora.safetensors")}
    remote = Remote("a/b", "0" * 40, files)
    keys = {
        name: file_key(remote, Candidate("lora", name, Artifact("lora", Path(name), (Path(name),), (), "")))
        for name in files
    }
    assert len(set(keys.values())) == 2 and all("ab" in key for key in keys.values())


WHOLE = {fmt.name: fmt for fmt in format_files.whole_models()}
F8 = torch.float8_e4m3fn


def scaled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In float8 with a scale beside each matrix, as ComfyUI's tools write it."""
    made: dict[str, torch.Tensor] = {"scaled_fp8": torch.zeros(0, dtype=F8)}
    for key, value in state.items():
        made[key] = value
        if value.dim() == 2:
            scale = value.abs().amax() / 448
            made[key], made[key.removesuffix("weight") + "scale_weight"] = (value / scale).to(F8), scale
    return made


def scaled_folder(root: Path, seed: int = 1, **config: object) -> Path:
    tiny_unet(seed, **config).save_pretrained(root)
    file = root / "diffusion_pytorch_model.safetensors"
    save_file(scaled(load_file(file)), file)
    return root


def scanned(source: Path, base: Resident, label: str = "suspect") -> dict[str, torch.Tensor]:
    """The state of the denoiser that a scan reads, after the check that comes before the download."""
    found = suspect(source)
    check_fits(found, base)
    root = source if source.is_dir() else source.parent
    with place_on_base(found, root, label, base) as put:
        return {name: value.clone() for name, value in put.opened.denoiser.state_dict().items()}


def same(mine: dict[str, torch.Tensor], model: nn.Module) -> bool:
    theirs = model.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_float8_with_scales_is_read_as_verify_reads_it(tmp_path, base):
    whole = scaled_folder(tmp_path / "folder")
    bare = tmp_path / "bare" / "model.safetensors"
    bare.parent.mkdir()
    save_file(scaled(tiny_unet(1).state_dict()), bare)
    for source in (whole, bare):
        mine = scanned(source, base)
        assert same(mine, load_denoiser(source, base=base.denoiser, dtype=torch.float32))
        plain = tiny_unet(1).state_dict()
        assert not same(mine, tiny_unet(1))  # the rounding is there
        assert all(torch.allclose(mine[n], value, atol=0.1 * float(value.abs().max())) for n, value in plain.items())
    assert tiny_unet(0).state_dict().keys() == base.denoiser.state_dict().keys()
    assert same(base.denoiser.state_dict(), tiny_unet(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_every_whole_model_is_read_as_verify_reads_it(tmp_path, base, name):
    fmt = WHOLE[name]
    source = fmt.write(format_files.Change(tiny_unet(1), {}), tmp_path)
    if fmt.kind == "pipeline":
        source /= "unet"
    assert same(scanned(source, base), load_denoiser(source, base=base.denoiser, dtype=torch.float32))
    assert same(base.denoiser.state_dict(), tiny_unet(0))


def widened_files(wide: UNet2DConditionModel, root: Path) -> list[Path]:
    """A folder, a bare file, and one in original keys, as trainers of inpainting and editing write them."""
    wide.save_pretrained(root / "folder")
    for name, state in (("bare", wide.state_dict()), ("original", ldm_state(wide))):
        save_file({key: value.contiguous() for key, value in state.items()}, root / f"{name}.safetensors")
    return [root / "folder", root / "bare.safetensors", root / "original.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("channels", [9, 8, 5])
def test_a_denoiser_of_more_channels_is_read_as_verify_reads_it(tmp_path, base, channels):
    near, far = (widened(tiny_unet(0), in_channels=channels) for _ in range(2))
    far.conv_in.weight.data[:, 4:] = 1.0
    for source in widened_files(near, tmp_path):
        assert same(scanned(source, base), near)
        with place_on_base(suspect(source), source if source.is_dir() else tmp_path, "x", base) as put:
            assert put.distance == 0 and put.opened.denoiser is not base.denoiser
    for source in widened_files(far, tmp_path):
        with place_on_base(suspect(source), source if source.is_dir() else tmp_path, "x", base) as put:
            # what the base lacks counts from zero
            assert put.distance == pytest.approx((8 * (channels - 4) * 9) ** 0.5 / base.norm)
    assert same(base.denoiser.state_dict(), tiny_unet(0))


@pytest.mark.slow
def test_an_embedding_of_guidance_is_read_as_verify_reads_it(tmp_path, base):
    wide = widened(tiny_unet(1), time_cond_proj_dim=6)
    for source in widened_files(wide, tmp_path):
        assert same(scanned(source, base), wide)


@pytest.mark.slow
def test_a_plain_denoiser_on_a_base_of_more_channels(tmp_path):
    wide = Resident(widened(tiny_unet(0), in_channels=9), "base")
    for source in widened_files(tiny_unet(0), tmp_path):
        assert same(scanned(source, wide), tiny_unet(0))


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model_of_another_architecture_is_refused_by_its_headers(tmp_path, base, name):
    source = WHOLE[name].write(format_files.Change(tiny_unet(1, cross=20), {}), tmp_path)
    if WHOLE[name].kind == "pipeline":
        source /= "unet"
    with pytest.raises(WrongBaseError):
        check_fits(suspect(source), base)
    with pytest.raises(WrongBaseError):
        scanned(scaled_folder(tmp_path / "scaled", cross=20), base)


def test_numbers_that_only_their_library_reads_are_refused_by_their_headers(tmp_path, base):
    state = tiny_unet(1).state_dict()
    for name, more in {"four_bit": {"conv_in.weight.absmax": torch.ones(2)}, "scale": {}}.items():
        file = tmp_path / f"{name}.safetensors"
        save_file(state | more if more else state | {"conv_in.weight": state["conv_in.weight"].to(torch.int8)}, file)
        with pytest.raises(NotTestableError, match="stored quantised"):
            check_fits(suspect(file), base)


def test_an_adapter_in_native_names_fits_the_modules_that_they_stand_for(tmp_path):
    """A fused `qkv` is no module of the base: its rows are those of three."""
    torch.manual_seed(0)
    flux = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    resident, stem = Resident(flux, "base"), "lora_unet_double_blocks_0_img_attn_qkv"
    for width, error in ((48, None), (32, WrongBaseError)):
        state = {f"{stem}.lora_down.weight": torch.ones(2, 16), f"{stem}.lora_up.weight": torch.ones(width, 2)}
        save_file(state, tmp_path / "x.safetensors")
        found = suspect(tmp_path / "x.safetensors")
        if error is None:
            check_fits(found, resident)
            with place_on_base(found, tmp_path, "suspect", resident) as put:
                assert put.opened.adapter["modules"] == 3
        else:
            with pytest.raises(error, match=r"another architecture.*has weight \[48, 16\]"):
                check_fits(found, resident)
