"""The local Hub answers real `huggingface_hub` code as the Hub does. Faults are in `test_hub_server_faults.py`."""

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    NotASafetensorsRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from huggingface_hub.utils.sha import git_hash

from tests.hub_server import Hollow, HubServer
from tests.hub_server.blobs import BlobStore
from tests.hub_server.store import Entry, tree_oid
from tests.samples import CARD, safetensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline-like folder with a file too large for git."""
    root = tmp_path / "pipeline"
    (root / "unet").mkdir(parents=True)
    (root / "vae").mkdir()
    (root / "README.md").write_bytes(CARD)
    (root / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (root / "unet" / "config.json").write_text("{}")
    (root / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(range(256)) * 50_000)
    (root / "vae" / "config.json").write_text('{"a": 1}')
    return root


class TestPush:
    def test_create_delete_create(self, server: HubServer, api: HfApi) -> None:
        url = api.create_repo("owner/x", private=True)
        assert (url.repo_id, url) == ("owner/x", f"{server.url}/owner/x")
        assert api.model_info("owner/x").private
        with pytest.raises(HfHubHTTPError, match="already created") as error:
            api.create_repo("owner/x")
        assert error.value.response.status_code == 409
        assert api.create_repo("owner/x", exist_ok=True).repo_id == "owner/x"
        assert api.create_repo("bare-name").repo_id == "owner/bare-name"
        api.delete_repo("owner/x")
        assert not api.repo_exists("owner/x")
        with pytest.raises(RepositoryNotFoundError):
            api.delete_repo("owner/x")

    def test_upload_folder_then_nothing_then_one_file(self, server: HubServer, api: HfApi, folder: Path) -> None:
        api.create_repo("owner/x")
        info = api.upload_folder(repo_id="owner/x", folder_path=folder)
        assert info.oid == server.sha("owner/x")
        assert server.files("owner/x")[1:] == sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*"))
        for path in folder.rglob("*.*"):
            assert server.read("owner/x", str(path.relative_to(folder))) == path.read_bytes()
        assert len(server.requests("PUT")) == 1  # the weights alone are large

        server.log.clear()
        assert api.upload_folder(repo_id="owner/x", folder_path=folder).oid == info.oid
        assert not server.requests("PUT") and not server.requests("POST", "/commit/")

        (folder / "unet" / "config.json").write_text('{"b": 2}')
        assert api.upload_folder(repo_id="owner/x", folder_path=folder).oid != info.oid
        assert not server.requests("PUT")
        assert [c.commit_id for c in api.list_repo_commits("owner/x")][1] == info.oid

    @pytest.mark.parametrize("size", [2_000_000, 2_000_001, 3_999_999])
    def test_multipart(self, server: HubServer, api: HfApi, size: int) -> None:
        server.app.multipart_above, server.app.part_size = 1_000_000, 1_000_000
        content = (b"0123456789" * (size // 10 + 1))[:size]
        api.create_repo("owner/x")
        api.upload_file(repo_id="owner/x", path_or_fileobj=content, path_in_repo="a.safetensors")
        assert server.read("owner/x", "a.safetensors") == content
        assert len(server.requests("PUT", "/parts/")) == -(-size // 1_000_000)
        assert len(server.requests("POST", "/api/complete/")) == 1

    def test_one_commit_adds_copies_and_deletes(self, server: HubServer, api: HfApi) -> None:
        server.add_repo("owner/x", {"old.txt": b"1", "d/a.txt": b"2", "d/b.txt": b"3", "w.safetensors": b"\0weights"})
        api.create_commit(
            "owner/x",
            [
                CommitOperationAdd("new.txt", b"4"),
                CommitOperationDelete("old.txt"),
                CommitOperationDelete("d/"),
                CommitOperationCopy("w.safetensors", "copy.safetensors"),
            ],
            commit_message="change",
        )
        assert server.files("owner/x") == [".gitattributes", "copy.safetensors", "new.txt", "w.safetensors"]
        with pytest.raises(RemoteEntryNotFoundError, match="file with this name doesn't exist"):
            api.delete_file("old.txt", "owner/x")

    def test_parent_commit_must_be_the_head(self, server: HubServer, api: HfApi) -> None:
        old = server.add_repo("owner/x", {})
        server.commit("owner/x", {"a": b"1"})
        with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
            api.create_commit("owner/x", [CommitOperationAdd("b", b"2")], commit_message="m", parent_commit=old)
        assert error.value.response.status_code == 412

    def test_gitignore_of_the_upload_is_kept(self, server: HubServer, api: HfApi, folder: Path) -> None:
        (folder / ".gitignore").write_text("# no\n*.json\n!model_index.json\n")
        api.create_repo("owner/x")
        api.upload_folder(repo_id="owner/x", folder_path=folder)
        assert "unet/config.json" not in server.files("owner/x") and "model_index.json" in server.files("owner/x")

    def test_pull_request_by_a_stranger_then_merged(self, server: HubServer, api: HfApi) -> None:
        server.add_repo("owner/x", {"a.txt": b"1"})
        stranger = HfApi(endpoint=server.url, token=server.add_user("stranger"))
        with pytest.raises(HfHubHTTPError) as error:
            stranger.upload_file(repo_id="owner/x", path_or_fileobj=b"2", path_in_repo="a.txt")
        assert error.value.response.status_code == 403
        info = stranger.upload_file(
            repo_id="owner/x", path_or_fileobj=b"\0large", path_in_repo="b.safetensors", create_pr=True
        )
        assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
        assert "b.safetensors" not in server.files("owner/x")
        stranger.upload_file(repo_id="owner/x", path_or_fileobj=b"3", path_in_repo="c.txt", revision="refs/pr/1")
        path = api.hf_hub_download("owner/x", "b.safetensors", revision="refs/pr/1")
        assert Path(path).read_bytes() == b"\0large"
        assert [ref.ref for ref in api.list_repo_refs("owner/x", include_pull_requests=True).pull_requests or []] == [
            "refs/pr/1"
        ]
        api.merge_pull_request("owner/x", 1)
        assert server.files("owner/x") == [".gitattributes", "a.txt", "b.safetensors", "c.txt"]
        assert api.get_discussion_details("owner/x", 1).status == "merged"
        assert api.create_pull_request("owner/x", "again").git_reference == "refs/pr/2"

    @pytest.mark.parametrize("path", ["../evil", "a/../b", "/root", "a//b", ".git/config", "a\\b", ""])
    def test_path_tricks_are_refused(self, server: HubServer, api: HfApi, path: str) -> None:
        """The client refuses them as well, so the request is sent by hand."""
        sha = server.add_repo("owner/x", {})
        lines = [
            {"key": "header", "value": {"summary": "s"}},
            {"key": "file", "value": {"path": path, "content": "", "encoding": "base64"}},
        ]
        response = get_session().post(
            f"{server.url}/api/models/owner/x/commit/main",
            headers={"Authorization": f"Bearer {server.token}"},
            content=b"\n".join(json.dumps(line).encode() for line in lines),
        )
        assert response.status_code == 400
        assert server.sha("owner/x") == sha

    def test_a_hash_alone_gives_no_file(self, server: HubServer, api: HfApi) -> None:
        secret = b"\0the weights of a private repo"
        server.add_repo("someone/private", {"w.safetensors": secret}, private=True)
        server.add_repo("owner/x", {})
        value = {"path": "w.safetensors", "oid": hashlib.sha256(secret).hexdigest(), "size": len(secret)}
        lines = [{"key": "header", "value": {"summary": "s"}}, {"key": "lfsFile", "value": value}]
        response = get_session().post(
            f"{server.url}/api/models/owner/x/commit/main",
            headers={"Authorization": f"Bearer {server.token}"},
            content=b"\n".join(json.dumps(line).encode() for line in lines),
        )
        assert response.status_code == 400 and "does not exist" in response.text


class TestPull:
    def test_download_is_cached_by_etag(self, server: HubServer, api: HfApi) -> None:
        server.add_repo("owner/x", {"README.md": CARD, "w.safetensors": b"\0w"})
        small, large = (api.hf_hub_download("owner/x", name) for name in ("README.md", "w.safetensors"))
        assert Path(small).resolve().name == git_hash(CARD)
        assert Path(large).resolve().name == hashlib.sha256(b"\0w").hexdigest()
        server.log.clear()
        server.commit("owner/x", {"other.txt": b"a new commit, the same files"})
        assert api.hf_hub_download("owner/x", "w.safetensors") != large
        assert not server.requests("GET")

    def test_headers_of_resolve(self, server: HubServer) -> None:
        sha = server.add_repo("owner/x", {"a.txt": b"12345", "w.safetensors": b"\0w"})
        small, large = (
            get_session().head(f"{server.url}/owner/x/resolve/main/{name}", follow_redirects=False).headers
            for name in ("a.txt", "w.safetensors")
        )
        assert small["X-Repo-Commit"] == large["X-Repo-Commit"] == sha
        assert (small["ETag"], small["Content-Length"]) == (f'"{git_hash(b"12345")}"', "5")
        assert large["X-Linked-Etag"] == '"' + hashlib.sha256(b"\0w").hexdigest() + '"'
        assert large["X-Linked-Size"] == "2" and large["Location"].startswith(server.cdn_url)

    def test_no_token_reaches_the_storage_host(self, server: HubServer, api: HfApi) -> None:
        server.add_repo("owner/x", {"w.safetensors": b"\0w"}, private=True)
        api.hf_hub_download("owner/x", "w.safetensors")
        assert [entry.token for entry in server.requests(host="cdn")] == [None]
        assert {entry.token for entry in server.requests(host="hub")} == {server.token}
        signed = server.requests(host="cdn")[0]
        link = f"{server.cdn_url}{signed.path}?{signed.query}"
        assert get_session().get(link).content == b"\0w"
        assert get_session().get(link, headers={"Authorization": "Bearer hf_owner"}).status_code == 400
        assert get_session().get(link[:-1] + "x").status_code == 403

    def test_snapshot_of_a_pipeline_by_pattern(self, server: HubServer, api: HfApi, folder: Path) -> None:
        files = {str(path.relative_to(folder)): path for path in folder.rglob("*.*")}
        sha = server.add_repo("acme/sd", files)
        local = Path(api.snapshot_download("acme/sd", allow_patterns=["unet/*", "model_index.json"]))
        assert local.name == sha
        pulled = sorted(str(path.relative_to(local)) for path in local.rglob("*.*"))
        assert pulled == ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
        for path in pulled:
            assert (local / path).read_bytes() == (folder / path).read_bytes()

    def test_revisions_stay(self, server: HubServer, api: HfApi) -> None:
        first = server.add_repo("owner/x", {"a.txt": b"1"})
        api.create_tag("owner/x", tag="v1")
        api.create_branch("owner/x", branch="dev/next")
        second = server.commit("owner/x", {"a.txt": b"2"})
        api.upload_file(repo_id="owner/x", path_or_fileobj=b"3", path_in_repo="a.txt", revision="dev/next")
        texts = {
            revision: Path(api.hf_hub_download("owner/x", "a.txt", revision=revision)).read_bytes()
            for revision in ("main", "v1", "dev/next", first, second, "refs/heads/main")
        }
        assert list(texts.values()) == [b"2", b"1", b"3", b"1", b"2", b"2"]
        assert api.model_info("owner/x", revision=first[:7]).sha == first
        refs = api.list_repo_refs("owner/x")
        assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
        assert [ref.name for ref in refs.branches] == ["dev/next", "main"]
        api.delete_branch("owner/x", branch="dev/next")
        api.delete_tag("owner/x", tag="v1")
        with pytest.raises(RevisionNotFoundError):
            api.hf_hub_download("owner/x", "a.txt", revision="dev/next")

    def test_what_is_missing_is_named(self, server: HubServer, api: HfApi, guest: HfApi) -> None:
        sha = server.add_repo("owner/x", {})
        with pytest.raises(RemoteEntryNotFoundError) as entry:
            api.hf_hub_download("owner/x", "no.txt")
        assert entry.value.response.headers["X-Repo-Commit"] == sha
        with pytest.raises(RevisionNotFoundError):
            api.model_info("owner/x", revision="no")
        for client, status in ((api, 404), (guest, 401)):
            with pytest.raises(RepositoryNotFoundError) as repo:
                client.hf_hub_download("owner/no", "a.txt")
            assert repo.value.response.status_code == status
        assert not api.file_exists("owner/x", "no.txt") and api.file_exists("owner/x", ".gitattributes")

    def test_header_is_read_by_range(self, server: HubServer, api: HfApi) -> None:
        weights = safetensors("a.lora_A.weight", "a.lora_B.weight") + bytes(1_000_000)
        server.add_repo("owner/x", {"adapter.safetensors": weights})
        tensors = api.parse_safetensors_file_metadata("owner/x", "adapter.safetensors").tensors
        assert sorted(tensors) == ["a.lora_A.weight", "a.lora_B.weight"]
        (read,) = server.requests("GET", host="cdn")
        assert (read.status, read.range, read.sent) == (206, "bytes=0-100000", 100_001)
        with pytest.raises(NotASafetensorsRepoError):
            api.get_safetensors_metadata("owner/x")

    def test_long_and_sharded_headers(self, server: HubServer, api: HfApi) -> None:
        index = {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
        files = {"one.safetensors": safetensors("a"), "two.safetensors": safetensors("b", padding=200_000)}
        server.add_repo("owner/x", {"model.safetensors.index.json": json.dumps(index).encode(), **files})
        metadata = api.get_safetensors_metadata("owner/x")
        assert metadata.sharded and metadata.parameter_count == {"F32": 4}
        assert len(server.requests("GET", "two.safetensors", host="cdn")) == 2

    def test_a_hundred_gigabytes_cost_a_header(self, server: HubServer, api: HfApi) -> None:
        server.add_repo("owner/x", {"model.safetensors": Hollow(100 * 1024**3, safetensors("a"))})
        assert api.model_info("owner/x", files_metadata=True).siblings[1].size == 100 * 1024**3
        assert api.get_safetensors_metadata("owner/x").parameter_count == {"F32": 2}
        assert server.bytes_sent() < 200_000

    @pytest.mark.parametrize("name", ["small.txt", "large.safetensors"])
    def test_ranges(self, server: HubServer, name: str) -> None:
        content = b"\0" * large if (large := name.endswith("safetensors") * 10) else b"0123456789"
        server.add_repo("owner/x", {name: content})
        got = {}
        for value in ("bytes=2-4", "bytes=7-", "bytes=-3", "bytes=0-99", "bytes=10-", "bytes=5-2", "nonsense"):
            response = get_session().get(f"{server.url}/owner/x/resolve/main/{name}", headers={"Range": value})
            got[value] = (response.status_code, response.headers.get("Content-Range"), len(response.content))
        assert got.pop("bytes=10-")[:2] == (416, "bytes */10")
        assert got == {
            "bytes=2-4": (206, "bytes 2-4/10", 3),
            "bytes=7-": (206, "bytes 7-9/10", 3),
            "bytes=-3": (206, "bytes 7-9/10", 3),
            "bytes=0-99": (206, "bytes 0-9/10", 10),
            "bytes=5-2": (200, None, 10),
            "nonsense": (200, None, 10),
        }

    def test_awkward_names(self, server: HubServer, api: HfApi) -> None:
        names = ["a b.txt", "ü/é?#%41.txt", "w+&=.safetensors"]
        server.add_repo("owner/x", {name: b"\0" + name.encode() for name in names})
        for name in names:
            assert Path(api.hf_hub_download("owner/x", name)).read_bytes() == b"\0" + name.encode()


class TestAccess:
    def test_private(self, server: HubServer, api: HfApi, guest: HfApi) -> None:
        server.add_repo("owner/x", {"a.txt": b"1"}, private=True)
        other = HfApi(endpoint=server.url, token=server.add_user("other"))
        for client in (guest, other):
            with pytest.raises(RepositoryNotFoundError):
                client.model_info("owner/x")
            with pytest.raises(RepositoryNotFoundError):
                client.hf_hub_download("owner/x", "a.txt")
            assert list(client.list_models()) == []
        assert [model.id for model in api.list_models()] == ["owner/x"]
        server.grant("owner/x", "other")
        assert other.model_info("owner/x").private
        with pytest.raises(HfHubHTTPError, match="rights to write"):
            other.delete_repo("owner/x")

    def test_gated_shows_its_page_and_keeps_its_files(self, server: HubServer, api: HfApi, guest: HfApi) -> None:
        server.add_repo("owner/x", {"w.safetensors": b"\0w"}, gated="manual")
        other = HfApi(endpoint=server.url, token=server.add_user("other"))
        for client, status in ((guest, 401), (other, 403)):
            info = client.model_info("owner/x")
            assert info.gated == "manual" and info.siblings[1].rfilename == "w.safetensors"
            with pytest.raises(GatedRepoError) as error:
                client.hf_hub_download("owner/x", "w.safetensors")
            assert error.value.response.status_code == status
            with pytest.raises(GatedRepoError):
                client.auth_check("owner/x")
        server.grant("owner/x", "other")
        assert Path(other.hf_hub_download("owner/x", "w.safetensors")).read_bytes() == b"\0w"
        api.update_repo_settings("owner/x", gated=False)
        assert guest.hf_hub_download("owner/x", "w.safetensors")

    def test_tokens(self, server: HubServer, api: HfApi, guest: HfApi) -> None:
        assert api.whoami()["name"] == "owner"
        server.add_repo("owner/x", {})
        with pytest.raises(HfHubHTTPError, match="Invalid user token"):
            HfApi(endpoint=server.url, token="hf_wrong").whoami()
        with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
            HfApi(endpoint=server.url, token="hf_wrong").model_info("owner/x")
        reader = HfApi(endpoint=server.url, token=server.add_user("owner", role="read"))
        with pytest.raises(HfHubHTTPError, match="rights to write"):
            reader.upload_file(repo_id="owner/x", path_or_fileobj=b"1", path_in_repo="a")
        with pytest.raises(HfHubHTTPError) as error:
            guest.create_repo("owner/y")
        assert error.value.response.status_code == 401
        with pytest.raises(HfHubHTTPError) as error:
            api.create_repo("acme/y")
        assert error.value.response.status_code == 403
        member = HfApi(endpoint=server.url, token=server.add_user("member", orgs=("acme",)))
        assert member.create_repo("acme/y").repo_id == "acme/y"


class TestProcess:
    """Functions that read `HF_ENDPOINT` when imported, each in a process of its own."""

    def test_model_card(self, server: HubServer, python) -> None:  # type: ignore[no-untyped-def]
        server.add_repo("owner/x", {})
        out = python(
            """
from huggingface_hub import ModelCard, ModelCardData
data = ModelCardData(license="mit", base_model="acme/sd")
card = ModelCard.from_template(data, template_str="---\\n{{ card_data }}\\n---\\n# Title")
card.validate()
card.push_to_hub("owner/x")
print(ModelCard.load("owner/x").data.base_model)
card.text += "more"
print(card.push_to_hub("owner/x", create_pr=True).pr_revision)
card.data.license = "mine"
try:
    card.push_to_hub("owner/x")
except ValueError as error:
    print("license" in str(error))
"""
        )
        assert out.split() == ["acme/sd", "refs/pr/1", "True"]
        assert b"acme/sd" in server.read("owner/x", "README.md")

    @pytest.mark.slow
    def test_diffusers_push_and_pull(self, server: HubServer, python) -> None:  # type: ignore[no-untyped-def]
        out = python(
            """
from diffusers import DDPMScheduler
DDPMScheduler(num_train_timesteps=7).push_to_hub("owner/scheduler", private=True)
print(DDPMScheduler.from_pretrained("owner/scheduler").config.num_train_timesteps)
"""
        )
        assert out.strip() == "7"
        assert server.files("owner/scheduler") == [".gitattributes", "README.md", "scheduler_config.json"]
        assert server.repo("owner/scheduler").private


class TestStore:
    def test_git_ids(self, tmp_path: Path) -> None:
        """Reference: `git add . && git write-tree` (git 2.39) on these files."""
        blobs = BlobStore(tmp_path)
        files = {"d.txt": b"1", "a": b"hello\n", "d/e/c": b"", "d/b": b"x"}
        tree = {path: Entry(blobs.add(content), lfs=False) for path, content in files.items()}
        assert tree_oid(tree) == "ceb230cc2fe2e1e3d2a9481b285d4aa378190640"

    def test_200_repos_share_their_bytes(self, server: HubServer, tmp_path: Path) -> None:
        base = tmp_path / "base.safetensors"
        base.write_bytes(bytes(5_000_000))
        for i in range(200):
            server.add_repo(f"u/{i}", {"base.safetensors": base, "n.txt": str(i).encode()})
        on_disk = sum(path.stat().st_size for path in server.store.blobs.root.rglob("*") if path.is_file())
        assert on_disk < 5_100_000

    def test_content_must_be_bytes(self, server: HubServer) -> None:
        with pytest.raises(TypeError, match="NoneType"):
            server.add_repo("u/x", {"a": None})  # type: ignore[dict-item]

    def test_stopping_frees_folder_and_port(self) -> None:
        with HubServer() as server:
            folder, url = server.store.blobs.root, server.url
            get_session().get(f"{url}/api/models")
        server.stop()
        assert not folder.exists()
        with pytest.raises(Exception, match="refused"):
            get_session().get(f"{url}/api/models")

    def test_a_bug_is_not_an_injected_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with HubServer() as server:
            monkeypatch.setattr(server.store, "repos", None)
            assert get_session().get(f"{server.url}/api/models").status_code == 500
            assert len(server.crashes) == 1 and "AttributeError" in server.crashes[0]
