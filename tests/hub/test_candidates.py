"""Pull and verify one repository over HTTP: what is fetched, what the report says, and what is refused."""

import json

import pytest

from aiao_diffusers.errors import SuspectError
from aiao_diffusers.hub.candidates import candidates
from aiao_diffusers.hub.download import pull
from aiao_diffusers.hub.remote import look_up
from tests.hub_server import HubServer
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
        (found,) = candidates(look_up("user/both"))
        assert found.weights == (f"unet/{shard}",) and found.others[1].endswith("index.json")
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
