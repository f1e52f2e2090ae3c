"""A file is judged and its header read once, and whoever loads it takes that judgement."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from _tiny import BOTH_LEVELS, factors, ldm_state, tiny_unet, write
from safetensors.torch import load_file, save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import LoraNotLoadedError, NotTestableError, SuspectError
from aiao_diffusers.files import safetensors_header
from aiao_diffusers.formats.artifact import effect_of
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import detect
from aiao_diffusers.formats.lora import apply_lora


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """How often the header of each file was read."""
    found: Counter = Counter()
    parse = safetensors_header.parse_header

    def counted(path: Path, *rest: object, **more: object) -> safetensors_header.Header:
        found[path.name] += 1
        return parse(path, *rest, **more)

    monkeypatch.setattr(safetensors_header, "parse_header", counted)
    return found


def whole(root: Path, kind: str) -> Path:
    other = tiny_unet(seed=5)
    if kind in ("folder", "shards", "pipeline"):
        other.save_pretrained(root / "unet", **({"max_shard_size": "60KB"} if kind == "shards" else {}))
        (root / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        return root if kind == "pipeline" else root / "unet"
    state = ldm_state(other) if kind == "original" else other.state_dict()
    save_file({k: v.contiguous().clone() for k, v in state.items()}, root / "x.safetensors")
    return root / "x.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "shards", "pipeline", "bare", "original"])
def test_a_whole_model_is_loaded_by_its_artifact_and_read_once(tmp_path, unet, reads, kind):
    found = detect(whole(tmp_path, kind))
    assert found.files == tuple(header.path for header in found.headers)
    assert (found.config is None) == (kind in ("bare", "original"))
    model = load_denoiser(found, base=unet, dtype=torch.float32)
    assert tensor_sha256(model) == tensor_sha256(tiny_unet(seed=5))
    assert set(reads.values()) == {1} and len(reads) == len(found.files)
    reads.clear()
    load_denoiser(whole(tmp_path, kind), base=unet)
    assert set(reads.values()) == {1} and len(reads) == len(found.files)


@pytest.mark.parametrize("fmt", ["kohya", "peft", "diffusers-metadata"])
def test_an_adapter_is_applied_by_its_artifact_and_read_once(tmp_path, unet, reads, fmt):
    source, states = write(tmp_path, fmt, factors(unet, BOTH_LEVELS, 2), 1.0), []
    for given in (detect(source), source):
        with apply_lora(unet, given) as loaded:
            states.append(tensor_sha256(unet))
        assert loaded.modules == 2 and set(reads.values()) == {1}
        reads.clear()
    assert states[0] == states[1] != tensor_sha256(unet) == tensor_sha256(tiny_unet())


def test_the_loaders_judge_an_artifact_as_they_judge_its_path(tmp_path, unet):
    made = factors(unet, BOTH_LEVELS, 2)
    for name in ("one", "two"):
        write(tmp_path / "two", "kohya", made, 1.0).rename(tmp_path / f"{name}.safetensors")
    (tmp_path / "two").rmdir()
    for source in (tmp_path, detect(tmp_path)):
        with pytest.raises(SuspectError, match=r"one\.safetensors, two\.safetensors"), apply_lora(unet, source):
            pass
        with pytest.raises(SuspectError, match="no whole denoiser but lora"):
            load_denoiser(source, base=unet)
    # peft's folder is an adapter by its config, and no adapter by its file
    folder = write(tmp_path / "peft", "peft", made, 1.0)
    save_file({"text_model.embeddings.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    assert detect(folder).kind == "lora"
    for source in (folder, detect(folder)):
        with pytest.raises(LoraNotLoadedError, match="text_encoder_only"), apply_lora(unet, source):
            pass


def test_a_folder_whose_numbers_only_its_library_reads_is_judged_by_its_config(tmp_path, unet, reads):
    unet.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "torchao"}}))
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / "diffusion_pytorch_model.bin")
    found = detect(tmp_path)
    assert (found.kind, found.files, found.headers) == ("denoiser", (), ()) and not reads
    with pytest.raises(NotTestableError, match=r"\.dequantize\(\)"):  # the pickle beside it is not the reason
        load_denoiser(found)


def test_a_folder_with_a_config_of_another_kind_is_no_bare_file(tmp_path, unet):
    """Its config names what would run, and a base that lies at hand must not stand in for it."""
    save_file(unet.state_dict(), tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text('{"_class_name": "Elsewhere"}')
    assert load_file(tmp_path / "x.safetensors").keys() == unet.state_dict().keys()
    for source in (tmp_path, detect(tmp_path)):
        with pytest.raises(SuspectError):
            load_denoiser(source, base=unet)
    assert tensor_sha256(load_denoiser(detect(tmp_path, "x.safetensors"), base=unet)) == tensor_sha256(unet)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ip_adapter", "adds layers to the denoiser"),
        ("motion_adapter", "adds layers to the denoiser"),
        ("controlnet", "adds to its activations"),
        ("text_encoder_only", "text encoders only"),
        ("unknown", "known here"),
    ],
)
def test_what_a_kind_does_to_a_denoiser_is_told_and_never_denied(kind, said):
    assert said in effect_of(kind) and "not change" not in effect_of(kind)
