"""A marked pipeline pulled from a Hub: the record comes along, and no weight is downloaded twice."""

import json
import struct

import pytest
from _transformers import build
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import NotTestableError, UnsafeFileError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.hub.download import pull
from tests.hub_server import Hollow, HubServer
from tests.samples import safetensors
from tests.suspects import LORA, folder


CODE = """
from aiao_diffusers import WatermarkedStableDiffusionPipeline, WatermarkKey
key = WatermarkKey(bytes(range(32)), "Demo")
for name in ("marked", "base"):
    pipe = WatermarkedStableDiffusionPipeline.from_pretrained(f"owner/{name}")
    print(name, pipe.record is not None and pipe.verify(key).verdict)
"""


def hollow(size: int, header: dict[str, object]) -> Hollow:
    raw = json.dumps(header).encode()
    return Hollow(size, struct.pack("<Q", len(raw)) + raw)


@pytest.mark.slow
def test_from_pretrained_of_a_repository(server: HubServer, python):
    for name in ("marked", "base"):
        server.add_repo(f"owner/{name}", folder(name))
    assert python(CODE).strip().splitlines()[-2:] == ["marked verified", "base False"]
    weights = [r for r in server.requests("GET", r".*diffusion_pytorch_model\.safetensors") if r.status == 200]
    paths = [r.path for r in weights]
    assert len(paths) == len(set(paths))


def test_the_denoiser_of_a_transformer_pipeline(hub: HubServer, tmp_path) -> None:
    """Its `transformer/` is found, downloaded and loaded as `unet/` is, with the schedule beside it and nothing else."""
    model = build("SD3")
    model.save_pretrained(tmp_path / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    named = {"transformer": ["diffusers", "SD3Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline", **named}))
    hub.add_repo("user/sd3", {p.relative_to(tmp_path).as_posix(): p for p in tmp_path.rglob("*") if p.is_file()})
    pulled = pull("user/sd3")
    assert (pulled.candidate.path, pulled.also_present) == ("transformer", ())
    assert tensor_sha256(load_denoiser(pulled.path)) == tensor_sha256(model)
    got = {r.path.rpartition("/resolve/")[2].partition("/")[2] for r in hub.requests("GET", ".*/resolve/.*")}
    assert (
        not any(path.startswith("vae/") for path in got)
        and (pulled.root / "scheduler/scheduler_config.json").is_file()
    )


class TestRefusals:
    def test_a_hundred_gigabytes_are_not_downloaded(self, hub: HubServer) -> None:
        size = 10**11
        entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
        raw = json.dumps({"unet.a.lora_A.weight": entry}).encode()
        hub.add_repo("user/big", {LORA: Hollow(8 + len(raw) + size, struct.pack("<Q", len(raw)) + raw)})
        with pytest.raises(NotTestableError, match=r"100\.0 GB"):
            pull("user/big", max_bytes=10**9)
        assert hub.bytes_sent("safetensors") < 200_000

    def test_an_unneeded_large_file_is_left_alone(self, hub: HubServer) -> None:
        hub.add_repo("user/small", {LORA: safetensors("a.lora_A.weight"), "training.tar": Hollow(10**11)})
        assert pull("user/small").path.is_file()

    @pytest.mark.parametrize(
        ("files", "error", "match"),
        [
            ({}, NotTestableError, "holds no safetensors"),
            ({"pytorch_lora_weights.bin": b"\x80\x04x"}, UnsafeFileError, "pickles only"),
            ({"unet/config.json": b"{}", "unet/diffusion_pytorch_model.bin": b"\x80\x04x"}, UnsafeFileError, "pickles"),
            ({"../../w.safetensors": b"x"}, UnsafeFileError, "leads out"),
            ({"a\\..\\w.safetensors": b"x"}, UnsafeFileError, "leads out"),
            ({"w.gguf": b"GGUF"}, UnsafeFileError, "named as GGUF and is none"),
            ({"w.gguf": b"<!doctype html>" * 9}, UnsafeFileError, "is an HTML page"),
            ({"w.safetensors": b""}, UnsafeFileError, "at least 10"),
            ({"w.safetensors": b"PK\x03\x04" + bytes(50)}, UnsafeFileError, "zip or pickle"),
            ({"w.safetensors": struct.pack("<Q", 2**40) + b"{}"}, UnsafeFileError, "past the end"),
            ({"w.safetensors": Hollow(2**41, struct.pack("<Q", 2**40))}, UnsafeFileError, "at most"),
            ({"w.safetensors": hollow(1000, {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})}, UnsafeFileError, "span"),
            ({"learned_embeds.safetensors": safetensors("<x>")}, NotTestableError, "textual_inversion"),
            (
                {
                    "unet/config.json": b"{}",
                    "unet/diffusion_pytorch_model.safetensors.index.json": b'{"weight_map": {"a": "../../x.safetensors"}}',
                },
                UnsafeFileError,
                "not beside it",
            ),
        ],
    )  # fmt: skip
    def test_bad_files(self, hub: HubServer, files: dict[str, bytes], error: type[Exception], match: str) -> None:
        hub.add_repo("user/bad", files)
        with pytest.raises(error, match=match):
            pull("user/bad")
        assert hub.bytes_sent("/") < 300_000
