"""Full models load whole or not at all; hostile files fail with a typed error before a tensor is read."""

import copy
import hashlib
import importlib.util
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from _tiny import BOTH_LEVELS, factors, ldm_state, run, tiny_unconditional, tiny_unet, write
from diffusers import AutoencoderKL, ControlNetModel
from safetensors.torch import load_file, save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import NotTestableError, SuspectError, UnsafeFileError, WrongBaseError
from aiao_diffusers.files.paths import list_weight_files
from aiao_diffusers.files.safetensors_header import MAX_HEADER_BYTES, check_finite, load_tensors, read_header
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import detect


GOOD = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F16", "shape": [], "data_offsets": [8, 10]},
}


def raw(path: Path, header: str | dict, data: bytes = bytes(10), length: int | None = None) -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def changed(**fields: object) -> dict:
    return GOOD | {"a": GOOD["a"] | fields}


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


@pytest.fixture
def folder(tmp_path, unet) -> Path:
    unet.save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


class TestHeader:
    def test_a_good_one(self, tmp_path):
        header = read_header(raw(tmp_path / "x.safetensors", GOOD | {"__metadata__": {"k": "v"}}))
        assert header.tensors["a"].shape == (2,) and header.tensors["b"].dtype == "F16"
        assert header.metadata == {"k": "v"}

    def test_agrees_with_the_library_on_what_it_writes(self, tmp_path):
        state = {"z": torch.ones(3, 2), "y": torch.zeros(0, 4), "x": torch.tensor(1, dtype=torch.int64)}
        state["w"] = torch.ones(5).to(torch.float8_e4m3fn)
        save_file(state, tmp_path / "x.safetensors")
        header = read_header(tmp_path / "x.safetensors")
        assert {k: t.shape for k, t in header.tensors.items()} == {k: tuple(t.shape) for k, t in state.items()}
        loaded = load_tensors(tmp_path / "x.safetensors")
        assert all(torch.equal(loaded[k].float(), v.float()) for k, v in state.items())

    @pytest.mark.parametrize(
        ("header", "match"),
        [
            (changed(dtype="F33"), "unknown dtype"),
            (changed(dtype=["F32"]), "unknown dtype"),
            (changed(dtype="F64"), "does not fill"),
            (changed(shape=[3]), "does not fill"),
            (changed(shape=[2**62, 2**62]), "does not fill"),
            (changed(shape=[2**63, 2]), "does not fill"),
            (changed(shape=[-2]), "bad shape"),
            (changed(shape=[True, 2]), "bad shape"),
            (changed(shape=[2.0]), "bad shape"),
            (changed(shape=[1] * 9), "bad shape"),
            (changed(shape=2), "bad shape"),
            (changed(data_offsets=[8, 0]), "does not fill"),
            (changed(data_offsets=[-8, 0]), "bad data_offsets"),
            (changed(data_offsets=[0, 8, 9]), "bad data_offsets"),
            (changed(data_offsets=[2, 10]), "gap"),
            (GOOD | {"c": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "overlaps"),
            (GOOD | {"c": {"dtype": "F32", "shape": [1], "data_offsets": [10, 14]}}, "the file holds"),
            ({"a": GOOD["a"]}, "the file holds"),
            ({"a": {"dtype": "F32", "shape": [2]}}, "exactly dtype"),
            ({"a": GOOD["a"] | {"code": "x"}}, "exactly dtype"),
            ({"a": 3}, "exactly dtype"),
            ({"a\ud800": GOOD["a"], "b": GOOD["b"]}, "not printable"),
            ({"a\n": GOOD["a"], "b": GOOD["b"]}, "not printable"),
            (GOOD | {"__metadata__": {"k": 1}}, "text to text"),
            (GOOD | {"__metadata__": []}, "text to text"),
            ('{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": 1}', "duplicate"),
            ('{"a": {"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "duplicate"),
            ('{"a": NaN}', "not a JSON number"),
            ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "not valid JSON"),
            ('{"a": ' + "9" * 10_000 + "}", "not valid JSON"),
            ("{", "not valid JSON"),
            ("[]", "opening brace"),
            (" {}", "opening brace"),
        ],
        ids=lambda v: v[:24] if isinstance(v, str) else "",
    )
    def test_flaws(self, tmp_path, header, match):
        path = raw(tmp_path / "x.safetensors", header)
        for read in (read_header, load_tensors, detect):
            with pytest.raises(UnsafeFileError, match=match):
                read(path)

    @pytest.mark.parametrize("length", [2**64 - 1, 2**40, 400])
    def test_length_past_the_end(self, tmp_path, length):
        with pytest.raises(UnsafeFileError, match="past the end"):
            read_header(raw(tmp_path / "x.safetensors", GOOD, length=length))

    def test_huge_header_is_not_read(self, tmp_path):
        path = tmp_path / "x.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
            file.truncate(MAX_HEADER_BYTES + 100)  # sparse: costs no disk
        with pytest.raises(UnsafeFileError, match="are accepted"):
            read_header(path)

    def test_more_tensor_bytes_than_allowed(self, tmp_path):
        with pytest.raises(UnsafeFileError, match="at most 9"):
            read_header(raw(tmp_path / "x.safetensors", GOOD), max_bytes=9)

    def test_message_stays_short(self, tmp_path):
        with pytest.raises(UnsafeFileError) as caught:
            read_header(raw(tmp_path / "x.safetensors", {"k" * 100_000: 1}))
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.PTH", "x.ckpt", "x.pkl"])
    def test_pickles_are_refused_by_name(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"\x80\x04.")
        for call in (read_header, detect, load_denoiser):
            with pytest.raises(UnsafeFileError, match="run code"):
                call(tmp_path / name)

    @pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x04\x95\0", b"\x80\x02}q"])
    def test_pickles_are_refused_by_content(self, tmp_path, start):
        (tmp_path / "x.safetensors").write_bytes(start + b"\xff" * 100)
        with pytest.raises(UnsafeFileError, match="zip or pickle"):
            read_header(tmp_path / "x.safetensors")

    @pytest.mark.parametrize("size", [0, 7, 8])
    def test_too_small(self, tmp_path, size):
        (tmp_path / "x.safetensors").write_bytes(bytes(size))
        with pytest.raises(UnsafeFileError):
            read_header(tmp_path / "x.safetensors")

    def test_missing_and_special_files(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.safetensors")
        for name in ("none.safetensors", "pipe.safetensors"):
            with pytest.raises(SuspectError):
                read_header(tmp_path / name)


class TestHash:
    def test_fixed_vector(self):
        # sha256 over the layout in the docstring, written out by hand.
        def field(b: bytes) -> bytes:
            return struct.pack("<Q", len(b)) + b

        expected = hashlib.sha256(
            b"aiao-tensors-v1\0"
            + field(b"w")
            + field(b"torch.float16")
            + field(b"2")
            + field(struct.pack("<2e", 1, -2))
        ).hexdigest()
        assert tensor_sha256({"w": torch.tensor([1.0, -2.0], dtype=torch.float16)}) == expected

    def test_order_and_layout_do_not_matter(self):
        a, b = torch.arange(6.0).reshape(2, 3), torch.tensor(3)
        assert tensor_sha256({"a": a, "b": b}) == tensor_sha256({"b": b, "a": a.T.contiguous().T})

    def test_name_dtype_shape_and_one_bit_do(self):
        a = torch.arange(6.0)
        flipped = a.clone().view(torch.int32)
        flipped[3] ^= 1
        others = [
            {"b": a},
            {"a": a.double()},
            {"a": a.view(torch.int32)},
            {"a": a.reshape(2, 3)},
            {"a": flipped.view(torch.float32)},
            {"a": a[:5], "b": a[5:]},
            {},
        ]
        assert len({tensor_sha256(s) for s in [{"a": a}, *others]}) == 8

    def test_meta_tensors_have_none(self):
        with pytest.raises(NotTestableError):
            tensor_sha256({"a": torch.empty(2, device="meta")})


def test_check_finite_names_the_key():
    good = {"i": torch.tensor([1]), "e": torch.empty(0), "denormal": torch.tensor([1e-40])}
    check_finite(good | {"f8": torch.ones(2).to(torch.float8_e5m2)})
    for bad in (float("nan"), float("-inf")):
        for dtype in (torch.float32, torch.bfloat16, torch.float8_e5m2):
            with pytest.raises(NotTestableError, match="'culprit'"):
                check_finite(good | {"culprit": torch.tensor([1.0, bad]).to(dtype)})


class TestDetect:
    def test_folders(self, tmp_path, folder):
        assert detect(folder).kind == "denoiser"
        (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        assert detect(tmp_path).kind == "pipeline"

    @pytest.mark.parametrize("fmt", ["kohya", "peft", "diffusers-old", "diffusers-metadata", "comfy-ldm"])
    def test_adapters(self, tmp_path, unet, fmt):
        assert detect(write(tmp_path, fmt, factors(unet, BOTH_LEVELS, 2), 1.0)).kind == "lora"

    @pytest.mark.parametrize(
        ("keys", "kind"),
        [
            (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "denoiser"),
            (["unet.transformer_blocks.0.attn.to_q.weight"], "denoiser"),
            (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"], "single_file"),
            (["emb_params"], "textual_inversion"),
            (["<toy>", "<toy>_1"], "textual_inversion"),
            (["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"], "text_encoder_only"),
            (["text_encoder.text_model.encoder.layers.0.q_proj.lora_A.weight"], "text_encoder_only"),
            (["text_model.embeddings.token_embedding.weight"], "text_encoder_only"),
            (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "ip_adapter"),
            (["control_model.time_embed.0.weight"], "controlnet"),
            (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"], "controlnet"),
            (["encoder.down_blocks.0.x", "decoder.conv_in.weight"], "unknown"),
            (["hello.world"], "unknown"),
            ([], "unknown"),
        ],
    )
    def test_keys(self, tmp_path, keys, kind):
        save_file({k: torch.ones(1, 4) for k in keys}, tmp_path / "x.safetensors")
        assert detect(tmp_path / "x.safetensors").kind == kind

    def test_control_networks_are_not_denoisers(self, tmp_path, unet):
        ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8,)).save_pretrained(tmp_path)
        assert detect(tmp_path).kind == "controlnet"
        with pytest.raises(SuspectError, match="no denoiser"):
            load_denoiser(tmp_path)

    def test_an_embedding_beside_an_adapter_does_not_hide_it(self, tmp_path, unet):
        write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 1.0)
        save_file({"emb_params": torch.ones(1, 4)}, tmp_path / "e.safetensors")
        found = detect(tmp_path)
        assert found.kind == "lora" and [p.name for p in found.files] == ["kohya.safetensors"]
        assert "e.safetensors (textual_inversion)" in found.warnings[0]
        assert detect(tmp_path, "e.safetensors").kind == "textual_inversion"
        assert [p.name for p in list_weight_files(tmp_path)] == ["e.safetensors", "kohya.safetensors"]

    def test_a_whole_model_beside_an_adapter_needs_a_name(self, tmp_path, unet):
        write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 1.0)
        save_file(unet.state_dict(), tmp_path / "whole.safetensors")
        assert detect(tmp_path).kind == "unknown" and "denoiser, lora" in detect(tmp_path).detail
        assert detect(tmp_path, "whole.safetensors").kind == "denoiser"


class TestFolder:
    def test_round_trip(self, unet, folder):
        model = load_denoiser(folder)
        assert tensor_sha256(model) == tensor_sha256(unet) and not model.training
        assert torch.equal(run(model), run(unet))

    def test_pipeline_folder(self, unet, tmp_path, folder):
        (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["x", "Evil"]}')
        assert tensor_sha256(load_denoiser(tmp_path)) == tensor_sha256(unet)

    @pytest.mark.parametrize("variant", [None, "fp16"])
    def test_shards_and_variants(self, unet, tmp_path, variant):
        unet.save_pretrained(tmp_path, max_shard_size="60KB", variant=variant)
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
        assert tensor_sha256(load_denoiser(tmp_path)) == tensor_sha256(unet)

    def test_plain_shards_come_before_a_whole_variant(self, unet, tmp_path):
        other = copy.deepcopy(unet)
        other.conv_in.weight.data.add_(1.0)
        other.save_pretrained(tmp_path, variant="fp16")
        unet.save_pretrained(tmp_path, max_shard_size="60KB")
        assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").exists()
        assert tensor_sha256(load_denoiser(tmp_path)) == tensor_sha256(unet)

    def test_several_variants_and_no_plain_file(self, unet, tmp_path):
        unet.save_pretrained(tmp_path, variant="fp16", max_shard_size="60KB")
        unet.save_pretrained(tmp_path, variant="non_ema")
        with pytest.raises(SuspectError, match="several variants"):
            load_denoiser(tmp_path)

    def test_single_file_variant(self, unet, tmp_path):
        unet.half().save_pretrained(tmp_path, variant="fp16")
        assert tensor_sha256(load_denoiser(tmp_path, dtype=torch.float16)) == tensor_sha256(unet)

    def test_unconditional_unet_with_old_attention_names(self, tmp_path):
        model = tiny_unconditional(
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")
        )
        model.save_pretrained(tmp_path)
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        state = load_file(path)
        for new, name in old.items():
            state = {k.replace(f".{new}.", f".{name}."): v.clone() for k, v in state.items()}
        save_file(state, path)
        assert tensor_sha256(load_denoiser(tmp_path)) == tensor_sha256(model)

    def edit(self, folder: Path, **fields: object) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    @pytest.mark.parametrize(
        "name",
        ["os", "AutoencoderKL", "StableDiffusionPipeline", "DDPMScheduler", "NoSuchUNet", "../x", "_UNet", 3, None],
    )
    def test_class_names(self, folder, name):
        self.edit(folder, _class_name=name)
        with pytest.raises(SuspectError):
            load_denoiser(folder)

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"layers_per_block": 10**9}, UnsafeFileError),
            ({"transformer_layers_per_block": [1, 10**9]}, UnsafeFileError),
            ({"block_out_channels": [8] * 10**5}, UnsafeFileError),
            ({"block_out_channels": [10**9, 10**9]}, UnsafeFileError),
            ({"sample_size": 10**6}, UnsafeFileError),
            ({"cross_attention_dim": [[[[[[[[1]]]]]]]]}, UnsafeFileError),
            ({"block_out_channels": [8, 32]}, WrongBaseError),
            ({"layers_per_block": 2}, WrongBaseError),
            ({"block_out_channels": "x"}, SuspectError),
            ({"norm_num_groups": 0}, SuspectError),
            ({"down_block_types": ["Evil", "Evil"]}, SuspectError),
            ({"quantization_config": {"quant_method": "bitsandbytes"}}, NotTestableError),
        ],
        ids=str,
    )
    def test_configs(self, folder, fields, error):
        self.edit(folder, **fields)
        with pytest.raises(error):
            load_denoiser(folder)

    @pytest.mark.parametrize("change", ["missing", "extra", "renamed", "shape", "nan"])
    def test_weights_that_diffusers_would_fill_in_or_drop(self, folder, change):
        path = folder / "diffusion_pytorch_model.safetensors"
        state = {k: v.clone() for k, v in load_file(path).items()}
        first = "conv_in.weight"
        if change == "extra":
            state["more.weight"] = torch.ones(2)
        elif change == "nan":
            state[first][0] = float("nan")
        else:
            old = state.pop(first)
            state |= {"renamed": {"conv_out2.weight": old}, "shape": {first: old[:-1].clone()}}.get(change, {})
        save_file(state, path)
        with pytest.raises(NotTestableError if change == "nan" else WrongBaseError, match="weight"):
            load_denoiser(folder)

    def test_only_pickles(self, folder):
        path = folder / "diffusion_pytorch_model.safetensors"
        path.rename(path.with_suffix(".bin"))
        with pytest.raises(UnsafeFileError, match="pickle"):
            load_denoiser(folder)

    def test_nothing_there(self, tmp_path, folder):
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        for place in (folder, tmp_path, tmp_path / "none"):
            with pytest.raises(SuspectError):
                load_denoiser(place)

    def test_link_out_of_the_folder(self, tmp_path, folder):
        path = folder / "diffusion_pytorch_model.safetensors"
        path.rename(tmp_path / "outside.safetensors")
        path.symlink_to(tmp_path / "outside.safetensors")
        with pytest.raises(UnsafeFileError, match="link out"):
            load_denoiser(folder)

    def test_links_of_a_hub_cache_are_fine(self, tmp_path, unet):
        blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c0ffee"
        blobs.mkdir(parents=True)
        (snapshot / "unet").mkdir(parents=True)
        unet.save_pretrained(tmp_path / "plain")
        for file in (tmp_path / "plain").iterdir():
            file.rename(blobs / file.name)
            (snapshot / "unet" / file.name).symlink_to(Path("../../../blobs") / file.name)
        (snapshot / "model_index.json").write_text("{}")
        assert tensor_sha256(load_denoiser(snapshot)) == tensor_sha256(unet)


class TestIndex:
    @pytest.fixture
    def sharded(self, tmp_path, unet) -> Path:
        unet.save_pretrained(tmp_path / "unet", max_shard_size="60KB")
        return tmp_path / "unet"

    def redirect(self, folder: Path, target: object) -> None:
        path = folder / "diffusion_pytorch_model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"]["conv_in.weight"] = target
        path.write_text(json.dumps(index))

    @pytest.mark.parametrize(
        "target", ["../x.safetensors", "/etc/passwd", "a/../x.safetensors", "..\\x", "", "..", 3, None, "a\0b"]
    )
    def test_path_tricks(self, sharded, target):
        self.redirect(sharded, target)
        with pytest.raises(UnsafeFileError):
            load_denoiser(sharded)

    def test_missing_shard_and_wrong_shard(self, sharded):
        next(p for p in sharded.glob("*-00002-*.safetensors")).rename(sharded / "gone")
        with pytest.raises(SuspectError, match="missing"):
            load_denoiser(sharded)

    def test_tensor_not_in_its_shard(self, sharded):
        names = sorted(p.name for p in sharded.glob("*.safetensors"))
        held = next(n for n in names if "conv_in.weight" not in load_file(sharded / n))
        self.redirect(sharded, held)
        with pytest.raises(SuspectError, match="disagree"):
            load_denoiser(sharded)

    @pytest.mark.parametrize("text", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": []}', "[" * 10**5])
    def test_broken_index(self, sharded, text):
        (sharded / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
        with pytest.raises(UnsafeFileError):
            load_denoiser(sharded)


class TestSingleFile:
    @pytest.mark.parametrize("prefix", ["", "unet.", "model.diffusion_model."])
    def test_diffusers_keys_on_a_base(self, tmp_path, unet, prefix):
        other, before = tiny_unet(seed=5), tensor_sha256(unet)
        save_file({prefix + k: v for k, v in other.state_dict().items()}, tmp_path / "x.safetensors")
        if prefix.startswith("model."):
            assert detect(tmp_path / "x.safetensors").kind == "single_file"
            return
        assert tensor_sha256(load_denoiser(tmp_path / "x.safetensors", base=unet)) == tensor_sha256(other)
        assert tensor_sha256(unet) == before

    @pytest.mark.parametrize("extra", [False, True], ids=["unet alone", "with VAE and EMA"])
    def test_original_layout(self, tmp_path, unet, extra):
        other = tiny_unet(seed=5)
        state = ldm_state(other)
        if extra:
            vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
            state |= {f"first_stage_model.{k}": v for k, v in vae.state_dict().items()}
            state |= {"model_ema." + k.replace(".", ""): v + 1 for k, v in ldm_state(other).items()}
        save_file({k: v.contiguous().clone() for k, v in state.items()}, tmp_path / "x.safetensors")
        model = load_denoiser(tmp_path / "x.safetensors", base=unet)
        assert tensor_sha256(model) == tensor_sha256(other)

    def test_original_layout_with_a_gap(self, tmp_path, unet):
        state = ldm_state(unet)
        del state["model.diffusion_model.middle_block.1.proj_in.weight"]
        save_file({k: v.contiguous().clone() for k, v in state.items()}, tmp_path / "x.safetensors")
        with pytest.raises(WrongBaseError):
            load_denoiser(tmp_path / "x.safetensors", base=unet)

    def test_wrong_base_and_no_base(self, tmp_path, unet):
        save_file(tiny_unet(cross=20).state_dict(), tmp_path / "x.safetensors")
        with pytest.raises(WrongBaseError, match=r"\[8, 20\].*\[8, 12\]"):
            load_denoiser(tmp_path / "x.safetensors", base=unet)
        with pytest.raises(SuspectError, match="base="):
            load_denoiser(tmp_path / "x.safetensors")

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
        import gguf

        def written(state):
            writer = gguf.GGUFWriter(path, "sd")
            for key, value in state.items():
                writer.add_tensor(key, value.numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            return path

        other = tiny_unet(seed=5)
        assert tensor_sha256(load_denoiser(written(ldm_state(other)), base=unet)) == tensor_sha256(other)
        extra = {"model.diffusion_model.input_blocks.9.0.op.weight": torch.ones(8, 8)}
        for state in ({"elsewhere.weight": torch.ones(2, 2)}, ldm_state(other) | extra):
            with pytest.raises(WrongBaseError, match="numbers of a denoiser"):
                load_denoiser(written(state), base=unet)

    def test_an_adapter_is_no_denoiser(self, tmp_path, unet):
        source = write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 1.0)
        with pytest.raises(SuspectError, match="lora"):
            load_denoiser(source, base=unet)
