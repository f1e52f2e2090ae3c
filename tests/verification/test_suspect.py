"""Suspects by repository id: what is fetched, and whose base and record a verdict rests on."""

import json
from pathlib import Path

import pytest
import torch
from _tiny import BOTH_LEVELS, factors, tiny_unet, widened, write
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from huggingface_hub import constants
from peft import LoraConfig, PeftMixedModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import save_file

from aiao_diffusers import WatermarkKey, verify
from aiao_diffusers.denoiser.hashes import weights_sha256
from aiao_diffusers.denoiser.sites import unwrap
from aiao_diffusers.errors import HubError, HubUnreachableError, SuspectError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.hub.candidates import candidates, declared_base
from aiao_diffusers.hub.remote import look_up
from aiao_diffusers.verification.suspect import open_suspect
from tests.hub_server import Cut, HubServer
from tests.samples import card, safetensors
from tests.suspects import ASSETS, LORA, UNET, folder


KEY = WatermarkKey(bytes(range(32)), "Demo")
FEW = {"amplitudes": (1.0,), "whiten": False}  # looks enough to compare two readings


class TestMistyped:
    @pytest.mark.parametrize(
        "name",
        [
            "marked",
            "a/b/c",
            "./a",
            "../a",
            "/a",
            "~/a",
            "a\\b/c",
            "a/b.safetensors",
            "a/b.gguf",
            "a/b.ckpt",
            "a/b.json",
        ],
    )
    def test_a_path_asks_no_network(self, hub: HubServer, name: str) -> None:
        with pytest.raises(SuspectError, match="no such folder or file"), open_suspect(name):
            pass
        assert not hub.log

    def test_what_may_be_either_is_looked_up_and_both_are_said(self, hub: HubServer) -> None:
        with pytest.raises(HubError, match=r"missing or private.*no such folder or file 'user/v1\.5'"):
            verify("user/v1.5", KEY)
        assert hub.log


class TestOwnRecord:
    @pytest.mark.slow
    def test_a_suspect_read_by_its_own_copy_is_told_of(self, record, tmp_path):
        tiny_unet().save_pretrained(tmp_path / "suspect")
        record.save(tmp_path / "suspect")
        record.save(tmp_path / "mine")
        own = verify(tmp_path / "suspect", KEY, trials=1)
        assert own.verdict == "not_verified" and any("own copy of the record" in text for text in own.warnings)
        for given in (record, tmp_path / "mine"):
            report = verify(tmp_path / "suspect", KEY, record=given, trials=1)
            assert report.log10_p == own.log10_p
            assert not any("own copy of the record" in text for text in report.warnings)


def zero_adapter() -> LoraConfig:
    return LoraConfig(r=2, target_modules=["to_q", "to_v"])


IN_MEMORY = {
    "PeftModel": lambda unet: get_peft_model(unet, zero_adapter()),
    "PeftMixedModel": lambda unet: PeftMixedModel(unet, zero_adapter()),
    "get_base_model": lambda unet: get_peft_model(unet, zero_adapter()).get_base_model(),
    "injected": lambda unet: inject_adapter_in_model(zero_adapter(), unet),
    "compiled": torch.compile,
    "compiled PeftModel": lambda unet: torch.compile(get_peft_model(unet, zero_adapter())),
    "switched off": lambda unet: (unet.add_adapter(zero_adapter()), unet.disable_adapters(), unet)[-1],
}


class TestInMemory:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", IN_MEMORY)
    def test_as_suspect_and_as_base(self, record, tmp_path, name):
        plain = verify(tiny_unet(), KEY, record=record, trials=1, **FEW)
        report = verify(IN_MEMORY[name](tiny_unet()), KEY, record=record, trials=1, **FEW)
        assert report.log10_p == pytest.approx(plain.log10_p, abs=1e-6) and report.verdict == "not_verified"
        told = {"compiled": "", "switched off": "switched off"}.get(name, "are active")
        assert any(told in text for text in report.warnings) or not told
        lora = write(tmp_path, "kohya", factors(tiny_unet(), BOTH_LEVELS, 2), 1.0)
        plain = verify(lora, KEY, tiny_unet(), record, trials=1, **FEW)
        base = IN_MEMORY[name](tiny_unet())
        before = weights_sha256(unwrap(base))
        report = verify(lora, KEY, base, record, trials=1, **FEW)
        assert report.log10_p == pytest.approx(plain.log10_p, abs=1e-6)
        assert report.adapter["modules"] == len(BOTH_LEVELS) == plain.adapter["modules"]
        assert weights_sha256(unwrap(base)) == before

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_reads_as_its_numbers_do_in_float32(self, record, dtype):
        unet = tiny_unet().to(dtype)
        report = verify(unet, KEY, record=record, trials=1, **FEW)
        plain = verify(tiny_unet().to(dtype).float(), KEY, record=record, trials=1, **FEW)
        assert report.log10_p == plain.log10_p and report.hashes["suspect"] == plain.hashes["suspect"]
        assert any(str(dtype) in text for text in report.warnings) and unet.dtype == dtype

    @pytest.mark.parametrize("where", ["in memory", "folder"])
    def test_frames_in_the_batch_are_not_testable(self, record, tmp_path, where):
        model = UNetMotionModel.from_unet2d(tiny_unet(), motion_adapter())
        if where == "folder":
            model.save_pretrained(tmp_path)
        report = verify(tmp_path if where == "folder" else model, KEY, record=record, trials=1)
        assert report.verdict == "not_testable" and "folds frames into the batch" in report.reason

    def test_an_ip_adapter_adds_layers_and_is_told_so(self, record, tmp_path):
        save_file({"image_proj.proj.weight": torch.ones(4, 4)}, tmp_path / "ip.safetensors")
        report = verify(tmp_path / "ip.safetensors", KEY, tiny_unet(), record, trials=1)
        assert report.verdict == "not_testable" and "it adds layers to the denoiser" in report.reason
        assert "not change" not in report.reason


def motion_adapter() -> MotionAdapter:
    return MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=4
    )


class TestWidened:
    @pytest.mark.parametrize("where", ["in memory", "folder", "bare file", "base"])
    def test_reads_as_the_model_that_it_was_made_from(self, record, tmp_path, where):
        plain, wide = tiny_unet(), widened(tiny_unet(), in_channels=9)
        lora = write(tmp_path, "kohya", factors(plain, BOTH_LEVELS, 2), 1.0)
        if where == "folder":
            wide.save_pretrained(tmp_path / "wide")
        elif where == "bare file":
            save_file(wide.state_dict(), tmp_path / "wide.safetensors")
        suspect, base = {
            "in memory": (wide, None),
            "folder": (tmp_path / "wide", None),
            "bare file": (tmp_path / "wide.safetensors", tiny_unet(seed=3)),
            "base": (lora, wide),
        }[where]
        expected = verify(lora if where == "base" else plain, KEY, plain if base is wide else None, record, **FEW)
        report = verify(suspect, KEY, base, record, **FEW)
        assert report.log10_p == pytest.approx(expected.log10_p, abs=1e-6) and report.verdict == expected.verdict
        assert any("9 channels" in text and "other 5 were zero" in text for text in report.warnings)

    def test_fewer_channels_are_not_testable(self, record):
        narrow = UNet2DConditionModel.from_config(
            dict(tiny_unet().config) | {"in_channels": 3, "_use_default_values": []}
        )
        report = verify(narrow, KEY, record=record, **FEW)
        assert report.verdict == "not_testable" and "probe inputs" in report.reason

    def test_a_config_that_names_no_class_is_told_of(self, record, tmp_path):
        tiny_unet().save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "FlaxUNet2DConditionModel"}))
        report = verify(tmp_path, KEY, record=record, **FEW)
        assert report.verdict == "not_verified"
        assert any("read as 'UNet2DConditionModel'" in text for text in report.warnings)


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


class TestBeside:
    def test_adapters_beside_the_one_that_is_read_are_named(self, hub: HubServer) -> None:
        other = {"zz.safetensors": safetensors("a.lora_A.weight")}
        hub.add_repo("user/two", {LORA: ASSETS / "lora" / LORA, **other})
        for weight_name, named in ((None, True), (LORA, False)):
            with open_suspect("user/two", load_denoiser(ASSETS / "base"), weight_name=weight_name) as found:
                assert [item.path for item in found.also_present] == ["zz.safetensors"] * named
                assert found.read == f"of user/two {LORA}" * named
