"""Pull and verify one repository over HTTP: what is fetched, what the report says, and what is refused."""

import json

import pytest

from aiao_diffusers.errors import SeveralSuspectsError, SuspectError, UnsafeFileError
from aiao_diffusers.formats.packing import QUANTO_MAP
from aiao_diffusers.hub.candidates import candidates
from aiao_diffusers.hub.download import pull
from aiao_diffusers.hub.remote import look_up
from tests.hub_server import Hollow, HubServer
from tests.samples import card, safetensors
from tests.suspects import ASSETS, LORA, folder


@pytest.mark.slow
class TestVerify:
    @pytest.fixture(autouse=True)
    def tree(self, hub: HubServer) -> None:
        hub.add_repo("acme/sd", folder("marked"))
        hub.add_repo("acme/clean", folder("base"))
        hub.add_repo("user/lora", {LORA: ASSETS / "lora" / LORA, "README.md": card(base_model="acme/sd")})

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
        found, variant = candidates(look_up("user/both"))
        assert found.weights == (f"unet/{shard}",) and found.others[1].endswith("index.json")
        assert variant.path == "unet/diffusion_pytorch_model.fp16.safetensors" and variant.kind == "folder"
        del names[f"unet/{shard}"], names["unet/diffusion_pytorch_model.safetensors.index.json"]
        hub.add_repo("user/variant", names)
        assert candidates(look_up("user/variant"))[0].weights == ("unet/diffusion_pytorch_model.fp16.safetensors",)


class TestRefusals:
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


STEM = "diffusion_pytorch_model"
WEIGHTS, CONFIG = safetensors("conv_in.weight"), json.dumps({"_class_name": "UNet2DConditionModel"}).encode()


def shards(prefix: str = "") -> dict[str, bytes]:
    shard = f"{STEM}-00001-of-00001.safetensors"
    index = json.dumps({"weight_map": {"conv_in.weight": shard}}).encode()
    return {f"{prefix}{shard}": WEIGHTS, f"{prefix}{STEM}.safetensors.index.json": index}


def index(**parts: list[str | None]) -> dict[str, bytes]:
    return {"model_index.json": json.dumps({"_class_name": "StableDiffusionPipeline", **parts}).encode()}


UNET_CONFIG = {"unet/config.json": CONFIG}
WAN, WAN_CONFIG = ["diffusers", "WanTransformer3DModel"], json.dumps({"_class_name": "WanTransformer3DModel"}).encode()
BLOCK = safetensors("blocks.0.scale_shift_table")
NAMED = ["diffusers", "UNet2DConditionModel"]


class TestListing:
    """The same choice as of a folder on this machine: see tests/formats/test_bystanders.py."""

    @pytest.mark.parametrize(
        ("files", "chosen", "others"),
        [
            (
                {**UNET_CONFIG, f"unet/{STEM}.safetensors": WEIGHTS, **shards("unet/")},
                f"unet/{STEM}-00001-of-00001.safetensors",
                [f"unet/{STEM}.safetensors"],
            ),
            (
                {
                    **{**UNET_CONFIG, f"unet/{STEM}.safetensors": WEIGHTS, f"unet/{STEM}.bin": b"x"},
                    **{"unet_ema/config.json": CONFIG, f"unet_ema/{STEM}.safetensors": WEIGHTS},
                    **{"vae/config.json": CONFIG, f"vae/{STEM}.safetensors": WEIGHTS},
                },
                f"unet/{STEM}.safetensors",
                [f"unet_ema/{STEM}.safetensors", f"unet/{STEM}.bin"],
            ),
            (
                {
                    **index(transformer=["diffusers", "SD3Transformer2DModel"], unet=[None, None]),
                    **{**UNET_CONFIG, f"unet/{STEM}.safetensors": WEIGHTS},
                    **{"transformer/config.json": CONFIG, f"transformer/{STEM}.safetensors": WEIGHTS},
                },
                f"transformer/{STEM}.safetensors",
                [f"unet/{STEM}.safetensors"],
            ),
            (
                {
                    **index(unet=NAMED),
                    "config.json": CONFIG,
                    f"{STEM}.safetensors": WEIGHTS,
                    "x.gguf": b"GGUF" + bytes(99),
                },
                f"{STEM}.safetensors",
                ["x.gguf"],
            ),
            (
                {
                    **{**index(unet=NAMED), **UNET_CONFIG, f"unet/{STEM}.safetensors": WEIGHTS},
                    **{f"{STEM}.safetensors": WEIGHTS, "loras/a.safetensors": safetensors("unet.a.lora_A.weight")},
                },
                f"unet/{STEM}.safetensors",
                [f"{STEM}.safetensors", "loras/a.safetensors"],
            ),
            (
                {
                    **index(transformer_2=WAN, transformer=WAN),
                    **{f"{part}/config.json": WAN_CONFIG for part in ("transformer", "transformer_2")},
                    **{f"{part}/{STEM}.safetensors": BLOCK for part in ("transformer", "transformer_2")},
                },
                f"transformer/{STEM}.safetensors",
                [f"transformer_2/{STEM}.safetensors"],
            ),
        ],
        ids=["shards", "ema and pickle", "transformer", "root", "beside", "two denoisers"],
    )
    def test_the_stock_loaders_choice_comes_first(self, hub: HubServer, files, chosen, others):
        hub.add_repo("user/x", files)
        pulled = pull("user/x")
        assert pulled.candidate.weights == (chosen,)
        assert [item.path for item in pulled.also_present] == others
        found = candidates(look_up("user/x"))
        assert [item.path for item in found[1:]] == [name for name in others if not name.endswith(".bin")]
        for item in found[1:]:
            assert pull("user/x", weight_name=item.path).candidate.weights == item.weights == (item.path,)

    def test_variants_without_plain_weights(self, hub: HubServer) -> None:
        variants = {f"unet/{STEM}.{name}.safetensors": WEIGHTS for name in ("fp16", "non_ema")}
        hub.add_repo("user/two", {**UNET_CONFIG, **variants})
        with pytest.raises(SeveralSuspectsError, match="fp16.*non_ema.*weight_name=") as caught:
            pull("user/two")
        assert [item.path for item in caught.value.also_present] == list(variants)
        assert [found.path for found in candidates(look_up("user/two"))] == list(variants)

    def test_a_pickle_that_would_run(self, hub: HubServer) -> None:
        hub.add_repo("user/old", {**UNET_CONFIG, f"unet/{STEM}.fp16.safetensors": WEIGHTS, f"unet/{STEM}.bin": b"x"})
        with pytest.raises(UnsafeFileError, match="runs the pickle"):
            pull("user/old")
        assert [found.path for found in candidates(look_up("user/old"))] == [f"unet/{STEM}.fp16.safetensors"]

    def test_a_hostile_index_does_not_hide_what_lies_beside(self, hub: HubServer) -> None:
        bad = {f"unet/{STEM}.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}
        hub.add_repo("user/bad", {**UNET_CONFIG, **bad, "y.safetensors": safetensors("unet.a.lora_A.weight")})
        assert [found.path for found in candidates(look_up("user/bad"))] == ["y.safetensors"]
        with pytest.raises(UnsafeFileError, match="not beside it"):
            pull("user/bad")

    def test_adapters_of_two_stock_names(self, hub: HubServer) -> None:
        names = ("adapter_model.safetensors", LORA)
        hub.add_repo("user/names", {name: safetensors("unet.a.lora_A.weight") for name in names})
        with pytest.raises(SeveralSuspectsError, match="weight_name="):
            pull("user/names")


class TestPacked:
    """The map that optimum-quanto writes beside packed weights, whose config.json says nothing of packing."""

    def test_it_comes_with_the_weights_of_its_folder(self, hub: HubServer) -> None:
        files = {**UNET_CONFIG, f"unet/{STEM}.safetensors": WEIGHTS, QUANTO_MAP: b"{}", f"vae/{QUANTO_MAP}": b"{}"}
        hub.add_repo("user/without", files)
        assert pull("user/without").candidate.others == ("unet/config.json",)
        hub.add_repo("user/with", {**files, f"unet/{QUANTO_MAP}": b"{}"})
        pulled = pull("user/with")
        assert pulled.candidate.others == ("unet/config.json", f"unet/{QUANTO_MAP}")
        assert (pulled.path / QUANTO_MAP).read_bytes() == b"{}"

    @pytest.mark.parametrize("name", ["config.json", QUANTO_MAP])
    def test_an_endless_one_is_not_downloaded(self, hub: HubServer, name: str) -> None:
        files = {**UNET_CONFIG, f"unet/{STEM}.safetensors": WEIGHTS, f"unet/{name}": Hollow(2**30, b"{")}
        hub.add_repo("user/endless", files)
        with pytest.raises(UnsafeFileError, match=f"{name} in user/endless has 1073741824 bytes"):
            pull("user/endless")
        assert not hub.requests("GET", f"endless/.*{name}")
