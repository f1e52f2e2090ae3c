"""Which suspects a scan may take for copies of each other, and what it refuses to put on the base."""

import json
from pathlib import Path

import pytest
import torch
from _tiny import tiny_unet
from safetensors.torch import load_file, save_file

from aiao_diffusers.errors import NotTestableError
from aiao_diffusers.files.safetensors_header import read_header
from aiao_diffusers.hub.candidates import Candidate
from aiao_diffusers.hub.remote import Remote, RemoteFile
from aiao_diffusers.scanning.resident import Resident, file_key, place_on_base


@pytest.fixture(scope="module")
def base() -> Resident:
    return Resident(tiny_unet(0), "base")


def folder(root: Path, **changes: object) -> Candidate:
    """`tiny_unet(1)` as a folder whose config is changed; None takes a key out."""
    tiny_unet(1).save_pretrained(root)
    config = json.loads((root / "config.json").read_text()) | changes
    (root / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    name = "diffusion_pytorch_model.safetensors"
    return Candidate("folder", "", (name,), (read_header(root / name),))


def digest(candidate: Candidate, root: Path, base: Resident) -> str:
    with place_on_base(candidate, root, "suspect", base) as put:
        return put.digest


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


def test_packed_integers_are_not_taken_for_floats(tmp_path, base):
    candidate = folder(tmp_path)
    file = tmp_path / candidate.weights[0]
    state = load_file(file)
    state["conv_in.weight"] = torch.ones_like(state["conv_in.weight"], dtype=torch.int8)
    save_file(state, file)
    with pytest.raises(NotTestableError, match=r"conv_in\.weight.*int8"):
        digest(candidate, tmp_path, base)


def test_the_name_by_which_peft_reads_a_file_is_part_of_its_key():
    files = {name: RemoteFile(8, sha256="ab") for name in ("adapter_model.safetensors", "lora.safetensors")}
    remote = Remote("a/b", "0" * 40, files)
    keys = {name: file_key(remote, Candidate("lora", name, (name,), ())) for name in files}
    assert len(set(keys.values())) == 2 and all("ab" in key for key in keys.values())
