"""A repository over HTTP: what is asked, how often, and what is refused."""

from pathlib import Path

import pytest

from aiao_diffusers.errors import HubError, HubUnreachableError, SuspectError, UnsafeFileError
from aiao_diffusers.hub.download import pull
from aiao_diffusers.hub.remote import Remote, RemoteFile, fetch, folder_of, look_up, read_remote_header
from tests.hub_server import HubServer, RateLimit, ServerError
from tests.samples import MISTAKEN, safetensors
from tests.suspects import ASSETS, LORA


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

    def test_plain_names_of_every_kind(self, hub: HubServer) -> None:
        odd = ("it's & mine! #1 100%.png", ".DS_Store", "Ünïcode ~v2~.txt")
        hub.add_repo("user/odd", {LORA: ASSETS / "lora" / LORA, **dict.fromkeys(odd, b"x")})
        found = look_up("user/odd")
        assert set(odd) <= found.files.keys() and found.refused == ()


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


class TestMistaken:
    """What lies on a Hub under the name of weights is told as on this machine: see tests/files/test_mistaken.py."""

    @pytest.mark.parametrize("name", MISTAKEN)
    def test_as_weights(self, hub: HubServer, name: str) -> None:
        content, words = MISTAKEN[name]
        hub.add_repo("user/x", {"w.safetensors": content, "x.gguf": content})
        for file in ("w.safetensors", "x.gguf"):
            with pytest.raises(UnsafeFileError) as caught:
                pull("user/x", weight_name=file)
            assert words in str(caught.value) and file in str(caught.value)

    @pytest.mark.parametrize("name", MISTAKEN)
    def test_what_is_served_in_place_of_the_file(self, hub: HubServer, name: str) -> None:
        content, words = MISTAKEN[name]
        hub.add_repo("user/x", {LORA: safetensors("a.lora_A.weight")})
        pinned = look_up("user/x")
        hub.swap_file("user/x", LORA, content)
        with pytest.raises(UnsafeFileError) as caught:
            read_remote_header(pinned, LORA)
        assert words in str(caught.value)

    def test_from_the_cache_alone(self, hub: HubServer, tmp_path: Path) -> None:
        content, words = MISTAKEN["page behind a blank line"]
        snapshot = folder_of("user/x", str(tmp_path)) / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / LORA).write_bytes(content)
        files = {LORA: RemoteFile(len(content))}
        with pytest.raises(UnsafeFileError) as caught:
            read_remote_header(Remote("user/x", "0" * 40, files, offline=True, cache=str(tmp_path)), LORA)
        assert words in str(caught.value)
