"""Pull and verify one repository over HTTP: what is fetched, what the report says, and what is refused."""

import json
import struct
from pathlib import Path

import pytest
from huggingface_hub import constants

from aiao_diffusers import WatermarkKey, verify
from aiao_diffusers.errors import (
    HubError,
    HubUnreachableError,
    NotTestableError,
    SuspectError,
    UnsafeFileError,
)
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.hub.candidates import candidates, declared_base
from aiao_diffusers.hub.download import pull
from aiao_diffusers.hub.remote import fetch, look_up, read_remote_header
from aiao_diffusers.verification.suspect import open_suspect
from tests.hub_server import Cut, Hollow, HubServer, RateLimit, ServerError
from tests.samples import card, safetensors
from tests.suspects import ASSETS, LORA, UNET, folder


KEY = WatermarkKey(bytes(range(32)), "Demo")


def hollow(size: int, header: dict[str, object]) -> Hollow:
    raw = json.dumps(header).encode()
    return Hollow(size, struct.pack("<Q", len(raw)) + raw)


@pytest.mark.slow
class TestVerify:
    @pytest.fixture(autouse=True)
    def tree(self, hub: HubServer) -> None:
        hub.add_repo("acme/sd", folder("marked"))
        hub.add_repo("acme/clean", folder("base"))
        hub.add_repo("user/lora", {LORA: ASSETS / "lora" / LORA, "README.md": card(base_model="acme/sd")})

    def test_lora_with_a_self_declared_base(self, hub: HubServer) -> None:
        report = verify("user/lora", KEY)
        assert report.verified and report.proves == "carries"
        assert report.source["suspect"]["commit"] == hub.sha("user/lora")
        assert report.source["base"] == {
            **{"repo": "acme/sd", "commit": hub.sha("acme/sd"), "file": "unet", "from_cache_alone": False},
            **{"declared_by": "model card", "matches_record": True},
        }
        assert any("self-declared" in text for text in report.warnings)
        assert hub.sha("user/lora") in report.to_markdown() and "are those of the record" in report.to_markdown()
        fetched = {
            entry.path.partition("/resolve/")[2].partition("/")[2] for entry in hub.requests("GET", "/resolve/")
        }
        assert not any(name.startswith(("vae", "text_encoder", "tokenizer")) for name in fetched)
        weights = (ASSETS / "marked" / UNET).stat().st_size
        assert weights < hub.bytes_sent("sd/.*diffusion_pytorch_model") < weights + 2**17  # once, and the header

    def test_controls(self, hub: HubServer) -> None:
        clean = verify("user/lora", KEY, base="acme/clean", record=ASSETS / "marked")
        assert clean.verdict == "not_verified" and clean.source["base"]["matches_record"] is False
        assert "declared_by" not in clean.source["base"]
        assert any("not those of the marked model" in text for text in clean.warnings)
        wrong = verify("user/lora", KEY.child("wrong"), base="acme/sd")
        assert wrong.verdict == "not_verified"

    def test_offline_from_the_cache(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        online = verify("user/lora", KEY, base="acme/sd")
        hub.log.clear()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        offline = verify("user/lora", KEY, base="acme/sd")
        assert offline.log10_p == online.log10_p and offline.source["suspect"]["from_cache_alone"]
        assert offline.source["suspect"]["commit"] == hub.sha("user/lora")
        assert not hub.log
        with pytest.raises(HubUnreachableError, match="cache lacks"):
            verify("acme/clean", KEY)

    def test_a_hub_that_is_gone_is_like_offline(self, hub: HubServer) -> None:
        verify("user/lora", KEY, base="acme/sd")
        hub.faults.add(Cut(side="silent", reset=True))
        report = verify("user/lora", KEY, base="acme/sd")
        assert report.verified and report.source["base"]["from_cache_alone"]

    def test_fine_tune_without_a_record_uses_its_declared_base(self, hub: HubServer) -> None:
        files = {**folder("finetuned", "unet", "model_index"), "README.md": card(base_model="acme/sd")}
        hub.add_repo("user/tuned", files)
        report = verify("user/tuned", KEY)
        assert report.verified and report.proves == "descent"
        assert any("the record is that of acme/sd" in text for text in report.warnings)
        assert not hub.requests("GET", "acme/sd/.*unet")
        named = verify("user/tuned", KEY, base="acme/sd")
        assert named.log10_p == report.log10_p and not named.warnings

    def test_with_a_record_at_hand_no_other_is_looked_for(self, hub: HubServer) -> None:
        files = {**folder("finetuned", "unet", "model_index"), "README.md": card(base_model="acme/gone")}
        hub.add_repo("user/tuned", files)
        report = verify("user/tuned", KEY, record=ASSETS / "marked")
        assert report.verified and not any("self" in text or "own" in text for text in report.warnings)
        assert not hub.requests("GET", "acme/gone")

    def test_plain_shards_come_before_a_whole_variant(self, hub: HubServer) -> None:
        shard, index = "diffusion_pytorch_model-00001-of-00001.safetensors", {"weight_map": {"conv_in.weight": ""}}
        index["weight_map"]["conv_in.weight"] = shard
        weights = safetensors("conv_in.weight")
        names = {
            "unet/config.json": b"{}",
            "unet/diffusion_pytorch_model.fp16.safetensors": weights,
            f"unet/{shard}": weights,
            "unet/diffusion_pytorch_model.safetensors.index.json": json.dumps(index).encode(),
        }
        hub.add_repo("user/both", names)
        (found,) = candidates(look_up("user/both"))
        assert found.weights == (f"unet/{shard}",) and found.others[1].endswith("index.json")
        del names[f"unet/{shard}"], names["unet/diffusion_pytorch_model.safetensors.index.json"]
        hub.add_repo("user/variant", names)
        assert candidates(look_up("user/variant"))[0].weights == ("unet/diffusion_pytorch_model.fp16.safetensors",)

    def test_revision_is_pinned(self, hub: HubServer) -> None:
        old = hub.sha("user/lora")
        hub.commit("user/lora", {LORA: safetensors("unet.conv_in.lora_A.weight", "unet.conv_in.lora_B.weight")})
        assert verify("user/lora", KEY, base="acme/sd", revision=old).source["suspect"]["commit"] == old

    def test_a_declared_base_never_opens_a_local_folder(
        self, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "acme").mkdir()
        (tmp_path / "acme" / "sd").symlink_to(ASSETS / "base")
        monkeypatch.chdir(tmp_path)
        assert verify("user/lora", KEY).source["base"]["repo"] == "acme/sd"
        config = json.dumps({"base_model_name_or_path": str(ASSETS / "marked"), "auto_mapping": {"x": "os.system"}})
        hub.add_repo(
            "user/path", {"adapter_model.safetensors": ASSETS / "lora" / LORA, "adapter_config.json": config.encode()}
        )
        assert declared_base(*(lambda r: (r, candidates(r)[0]))(look_up("user/path"))) == (None, None)
        with pytest.raises(SuspectError, match="pass the model it is used with"):
            verify("user/path", KEY)


class TestRefusals:
    def test_private_gated_missing(self, hub: HubServer) -> None:
        hub.add_repo("user/private", {LORA: safetensors("a.lora_A.weight")}, private=True)
        hub.add_repo("user/gated", {LORA: safetensors("a.lora_A.weight")}, gated=True)
        for name, match in [
            ("private", "missing or private.*HF_TOKEN"),
            ("gated", "accept its terms"),
            ("no", "missing"),
        ]:
            with pytest.raises(HubError, match=match):
                pull(f"user/{name}")
        with pytest.raises(HubError, match="no such revision"):
            hub.add_repo("user/open", {})
            pull("user/open", "v9")
        assert not hub.waits  # a refusal is not asked again

    @pytest.mark.parametrize("name", ["../x/y", "a/b/c", "user/", "~/model", "user/..", "user/a b", "x"])
    def test_no_repository_id(self, hub: HubServer, name: str) -> None:
        with pytest.raises(SuspectError):
            pull(name)
        assert not hub.log

    @pytest.mark.parametrize(
        ("files", "error", "match"),
        [
            ({}, NotTestableError, "holds no safetensors"),
            ({"pytorch_lora_weights.bin": b"\x80\x04x"}, UnsafeFileError, "pickles only"),
            ({"unet/config.json": b"{}", "unet/diffusion_pytorch_model.bin": b"\x80\x04x"}, UnsafeFileError, "pickles"),
            ({"../../w.safetensors": b"x"}, UnsafeFileError, "leads out"),
            ({"a\\..\\w.safetensors": b"x"}, UnsafeFileError, "leads out"),
            ({"w.gguf": b"GGUF"}, NotTestableError, "GGUF"),
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

    def test_plain_names_of_every_kind(self, hub: HubServer) -> None:
        odd = ("it's & mine! #1 100%.png", ".DS_Store", "Ünïcode ~v2~.txt")
        hub.add_repo("user/odd", {LORA: ASSETS / "lora" / LORA, **dict.fromkeys(odd, b"x")})
        found = look_up("user/odd")
        assert set(odd) <= found.files.keys() and found.refused == ()

    def test_the_weights_behind_many_other_files(self, hub: HubServer) -> None:
        others = {f"a{number}.safetensors": safetensors("emb_params") for number in range(9)}
        hub.add_repo("user/many", {**others, "the-one-adapter.safetensors": ASSETS / "lora" / LORA})
        assert [found.path for found in candidates(look_up("user/many"))] == ["the-one-adapter.safetensors"]

    def test_several_adapters(self, hub: HubServer) -> None:
        hub.add_repo("user/many", {f"{n}.safetensors": safetensors("a.lora_A.weight") for n in "ab"})
        with pytest.raises(SuspectError, match="a.safetensors, b.safetensors.*weight_name"):
            pull("user/many")
        assert pull("user/many", weight_name="b.safetensors").path.name == "b.safetensors"
        with pytest.raises(SuspectError, match="has no file"):
            pull("user/many", weight_name="../b.safetensors")

    def test_adapters_beside_the_one_that_is_read_are_named(self, hub: HubServer) -> None:
        other = {"zz.safetensors": safetensors("a.lora_A.weight")}
        hub.add_repo("user/two", {LORA: ASSETS / "lora" / LORA, **other})
        for weight_name, named in ((None, True), (LORA, False)):
            with open_suspect("user/two", load_denoiser(ASSETS / "base"), weight_name=weight_name) as found:
                assert any("it also holds 'zz.safetensors'" in text for text in found.warnings) is named


class TestTransfer:
    def test_large_header_takes_a_second_range(self, hub: HubServer) -> None:
        hub.add_repo("user/x", {"w.safetensors": safetensors("a.lora_A.weight", padding=200_000)})
        header = read_remote_header(look_up("user/x"), "w.safetensors")
        assert list(header.tensors) == ["a.lora_A.weight"] and header.tensors["a.lora_A.weight"].shape == (2,)
        assert len(hub.requests("GET", "w.safetensors", host="cdn")) == 2

    def test_retry_after_is_respected(self, hub: HubServer) -> None:
        hub.add_repo("user/x", {LORA: safetensors("a.lora_A.weight")})
        hub.faults.add(RateLimit(retry_after=7, path="^/api/models/user/x", times=2))
        hub.faults.add(ServerError(status=503, host="cdn", times=1))
        assert pull("user/x").path.is_file()
        assert hub.waits[:2] == [7.0, 7.0] and len(hub.waits) == 3

    def test_a_dead_hub_ends_as_unreachable(self, hub: HubServer) -> None:
        hub.add_repo("user/x", {})
        hub.faults.add(ServerError(status=502))
        with pytest.raises(HubUnreachableError, match="try again later"):
            look_up("user/x")
        assert sum(hub.waits) > 10

    def test_bytes_that_change_under_a_revision(self, hub: HubServer) -> None:
        good, other = safetensors("a.lora_A.weight"), safetensors("b.lora_A.weight")
        hub.add_repo("user/x", {LORA: good})
        pinned = look_up("user/x")
        hub.swap_file("user/x", LORA, other)
        with pytest.raises(HubError, match="changed during the download"):
            fetch(pinned, [LORA])
        hub.faults.clear()
        assert (fetch(pinned, [LORA]) / LORA).read_bytes() == good
