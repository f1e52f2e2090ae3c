"""What the local Hub derives and checks: tags, relations, listings, repo info, cards."""

import hashlib
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import BadRequestError, RemoteEntryNotFoundError
from huggingface_hub.utils.sha import git_hash

from tests.hub_server import HubServer
from tests.samples import CARD, card, safetensors


class TestListing:
    @pytest.mark.parametrize(
        ("relation", "files"),
        [
            ("finetune", {"README.md": card(base_model="acme/sd"), "w.safetensors": safetensors("conv.weight")}),
            ("adapter", {"README.md": card(base_model="acme/sd"), "adapter_config.json": b"{}"}),
            ("adapter", {"README.md": card(base_model="acme/sd"), "w.safetensors": safetensors("a.lora_A.weight")}),
            ("adapter", {"README.md": card(base_model="acme/sd"), "w.safetensors": safetensors("a.lora_down.weight")}),
            ("quantized", {"README.md": card(base_model="acme/sd"), "w.gguf": b"GGUF"}),
            ("merge", {"README.md": card(base_model=["acme/sd", "acme/other"])}),
            ("quantized", {"README.md": card(base_model="acme/sd", base_model_relation="quantized")}),
            (
                "merge",
                {"README.md": card(base_model="acme/sd", base_model_relation="merge"), "adapter_config.json": b""},
            ),
        ],
    )
    def test_relation(self, server: HubServer, api: HfApi, relation: str, files: dict[str, bytes]) -> None:
        server.add_repo("u/child", files)
        found = {
            name: [model.id for model in api.list_models(filter=f"base_model:{name}:acme/sd")]
            for name in ("adapter", "finetune", "merge", "quantized")
        }
        assert found == {name: ["u/child"] if name == relation else [] for name in found}
        assert [model.id for model in api.list_models(filter="base_model:acme/sd")] == ["u/child"]
        assert "acme/sd" in (api.model_info("u/child").base_models or [])

    def test_filters(self, server: HubServer, api: HfApi) -> None:
        for i in range(6):
            date = datetime(2024, 1, 1 + i, tzinfo=UTC)
            files = {"README.md": card(tags=["even" if i % 2 == 0 else "odd", "all"], pipeline_tag="text-to-image")}
            server.add_repo(f"{'ab'[i // 3]}/Model-{i}", files, date=date, downloads=(i * 7) % 6, gated=i == 5)

        def ids(**query: object) -> list[str]:
            return [model.id[-1] for model in api.list_models(**query)]  # type: ignore[arg-type]

        assert ids(filter="even") == ids(filter=["even", "all"]) == ids(filter="even,all") == ["0", "2", "4"]
        assert ids(filter=["even", "odd"]) == []
        assert ids(author="b") == ["3", "4", "5"]
        assert ids(search="model-4") == ids(search="b/model 4") == ["4"]
        assert ids(sort="last_modified") == ids(sort="created_at") == ["5", "4", "3", "2", "1", "0"]
        assert ids(sort="downloads") == ["5", "4", "3", "2", "1", "0"]
        assert ids(gated=True) == ["5"]
        assert ids(limit=2) == ["0", "1"]
        assert len(ids(pipeline_tag="text-to-image")) == 6
        plain, full = next(api.list_models()), next(api.list_models(full=True, cardData=True))
        assert plain.sha is None and plain.siblings is None
        assert full.sha == server.sha("a/Model-0") and full.card_data and full.card_data.license == "mit"
        expanded = next(api.list_models(expand=["lastModified", "cardData"]))
        assert expanded.last_modified == datetime(2024, 1, 1, tzinfo=UTC) and expanded.tags is None

    def test_pages(self, server: HubServer, api: HfApi) -> None:
        server.app.page_size = 7
        for i in range(20):
            server.add_repo(f"u/{i:02d}", {})
        models = api.list_models(filter="region:us")
        first = [model.id for model in islice(models, 7)]
        server.add_repo("u/00a", {})  # added behind the cursor: it shifts nothing
        assert first + [model.id for model in models] == [f"u/{i:02d}" for i in range(20)]
        assert len(server.requests("GET", "^/api/models$")) == 3
        server.commit("u/00", {f"d/{i}.txt": b"" for i in range(20)})
        assert len(list(api.list_repo_tree("u/00", recursive=True))) == 22
        assert len(api.list_repo_commits("u/00")) == 3

    def test_a_broken_card_has_no_tags(self, server: HubServer, api: HfApi) -> None:
        bomb = b"---\na: &a [x]\nb: [*a, *a]\nbase_model: acme/sd\n---\n"
        for i, text in enumerate([b"---\nbase_model: [\n---\n", bomb, b"\xff\xfe", b"", b"---\n- a\n---\n"]):
            server.add_repo(f"u/{i}", {"README.md": text})
        models = list(api.list_models(cardData=True))
        assert len(models) == 5 and all(m.tags == ["region:us"] and m.card_data is None for m in models)


class TestInfo:
    def test_model_info(self, server: HubServer, api: HfApi) -> None:
        security = {"scansDone": True, "filesWithIssues": [{"path": "evil.bin", "level": "unsafe"}]}
        files = {
            "README.md": CARD,
            "evil.bin": b"\0",
            "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
        }
        sha = server.add_repo("owner/x", files, security=security)
        info = api.model_info("owner/x", files_metadata=True, securityStatus=True)
        assert (info.sha, info.author, info.gated, info.private) == (sha, "owner", False, False)
        assert info.security_repo_status == security and api.model_info("owner/x").security_repo_status is None
        assert info.library_name == "diffusers"
        assert info.tags == [
            *("diffusers", "diffusers:StableDiffusionPipeline", "text-to-image", "base_model:acme/sd"),
            *("base_model:finetune:acme/sd", "license:mit", "region:us"),
        ]
        readme, evil = info.siblings[1], info.siblings[2]
        assert (readme.size, readme.blob_id, readme.lfs) == (len(CARD), git_hash(CARD), None)
        assert evil.lfs and evil.lfs.sha256 == hashlib.sha256(b"\0").hexdigest()
        assert api.model_info("owner/x", expand=["sha"]).sha == sha

    def test_tree_and_paths(self, server: HubServer, api: HfApi) -> None:
        server.add_repo("owner/x", {"a.txt": b"1", "d/b.txt": b"2", "d/e/c.txt": b"3"}, bare=True)
        second = server.commit("owner/x", {"d/b.txt": b"4"}, title="change b")
        assert [item.path for item in api.list_repo_tree("owner/x")] == ["a.txt", "d"]
        assert [item.path for item in api.list_repo_tree("owner/x", "d")] == ["d/b.txt", "d/e"]
        paths = [item.path for item in api.list_repo_tree("owner/x", recursive=True)]
        assert paths == ["a.txt", "d", "d/b.txt", "d/e", "d/e/c.txt"]
        with pytest.raises(RemoteEntryNotFoundError):
            list(api.list_repo_tree("owner/x", "no"))
        file, folder = api.get_paths_info("owner/x", ["d/b.txt", "no", "d/e"], expand=True)
        assert (file.last_commit.oid, file.last_commit.title) == (second, "change b")
        assert folder.last_commit.oid != second

    def test_datasets_are_apart(self, server: HubServer, api: HfApi) -> None:
        server.add_repo("owner/x", {"a.txt": b"data"}, kind="dataset")
        assert Path(api.hf_hub_download("owner/x", "a.txt", repo_type="dataset")).read_bytes() == b"data"
        assert not api.repo_exists("owner/x") and not list(api.list_models())


class TestCards:
    GOOD = [
        "---\nlicense: mit\n---\n",
        "---\nlicense: other\nlicense_name: aiao-1.0\nbase_model: [a/b, c]\nbase_model_relation: merge\n---\ntext",
        "---\nlicense: [mit, apache-2.0]\ntags: [a, b]\nlanguage: en\ndatasets: [a/b]\n---",
    ]
    BAD = {
        "license": "---\nlicense: mine\n---\n",
        "license_name": "---\nlicense: other\nlicense_name: Not This!\n---\n",
        "base_model": "---\nlicense: mit\nbase_model: {a: b}\n---\n",
        "not a valid model id": "---\nlicense: mit\nbase_model: https://evil/x\n---\n",
        "base_model_relation": "---\nlicense: mit\nbase_model_relation: child\n---\n",
        "tags": "---\nlicense: mit\ntags: one\n---\n",
        "duplicated mapping key": "---\nlicense: mit\nlicense: mit\n---\n",
        "anchors and aliases": "---\na: &a [x, x]\nb: &b [*a, *a]\nlicense: mit\n---\n",
        "nested deeper": "---\na: " + "[" * 50 + "]" * 50 + "\n---\n",
        "more than": "---\na: " + "x" * 200_000 + "\n---\n",
        "must be a mapping": "---\n- mit\n---\n",
        "YAML:": "---\nlicense: [mit\n---\n",
        "could not determine a constructor": "---\na: !!python/object/apply:os.system [x]\n---\n",
        "metrics": "---\nlicense: mit\nmodel-index: [{name: m, results: [{task: {type: t}}]}]\n---\n",
    }

    @pytest.mark.parametrize("text", GOOD)
    def test_good(self, api: HfApi, recwarn: pytest.WarningsRecorder, text: str) -> None:
        api._validate_yaml(text)
        assert not recwarn.list

    @pytest.mark.parametrize("message", BAD)
    def test_bad(self, server: HubServer, api: HfApi, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            api._validate_yaml(self.BAD[message])
        sha = server.add_repo("owner/x", {})
        with pytest.raises(ValueError, match=message):
            api.upload_file(repo_id="owner/x", path_or_fileobj=self.BAD[message].encode(), path_in_repo="README.md")
        assert server.sha("owner/x") == sha

    @pytest.mark.parametrize(
        ("message", "text"),
        [
            ("empty or missing", "# no head"),
            ("license", "---\ntags: [a]\n---\n"),
            ("pipeline tag", "---\nlicense: mit\npipeline_tag: x\n---\n"),
        ],
    )
    def test_warned(self, api: HfApi, message: str, text: str) -> None:
        with pytest.warns(UserWarning, match=message):
            api._validate_yaml(text)

    def test_a_commit_checks_the_card_too(
        self, server: HubServer, api: HfApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(HfApi, "_validate_yaml", lambda *args, **kwargs: None)
        server.add_repo("owner/x", {})
        with pytest.raises(BadRequestError, match="Invalid metadata"):
            api.upload_file(repo_id="owner/x", path_or_fileobj=b"---\nlicense: mine\n---\n", path_in_repo="README.md")
