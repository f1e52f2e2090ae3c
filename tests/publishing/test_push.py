"""Pushing a marked model: what is refused, what arrives, and what a second push sends."""

import json
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from _shipped import ASSETS
from huggingface_hub import EvalResult, HfApi, ModelCard
from safetensors.torch import load_file, save_file

from aiao_diffusers import WatermarkKey, WatermarkRecord, push, verify
from aiao_diffusers.errors import CardError, ConfigError, HubError, PushRefusedError, RecordError, SuspectError
from aiao_diffusers.publishing import cards
from aiao_diffusers.publishing.cards import BEGIN, END, CardFields
from tests.hub_server import Cut, RateLimit, ServerError


DEMO = WatermarkKey(bytes(range(32)), "Demo")
KEY = WatermarkKey(bytes.fromhex("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"), "Acme Labs")
SHIPPED = WatermarkRecord.load(ASSETS / "marked")
DENOISER = "unet/diffusion_pytorch_model.safetensors"
REPO = "owner/marked"


pytestmark = pytest.mark.usefixtures("endpoint")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As a pipeline saves it: the shipped card is left out, tests bring their own README."""
    skip = shutil.ignore_patterns("README.md")
    return Path(shutil.copytree(ASSETS / "marked", tmp_path / "marked", ignore=skip))


def send(folder, server, key=None, repo=REPO, **options):
    """Without a key, the weights are compared with the record: no forward, so tests of the upload stay quick."""
    return push(folder, repo, key, token=server.token, **options)


def paths(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


class TestArrival:
    def test_all_files_arrive_with_a_valid_card_in_one_commit(self, server, api, folder):
        made = send(folder, server, card=CardFields(license="apache-2.0", base_model="acme/emoji"))
        assert made.oid == server.sha(REPO)
        assert server.files(REPO) == sorted([".gitattributes", "README.md", *paths(folder)])
        for name in paths(folder):
            assert server.read(REPO, name) == (folder / name).read_bytes()
        assert len(api.list_repo_commits(REPO)) == 2  # the first one makes the repository
        assert not (folder / "README.md").exists()
        ModelCard(server.read(REPO, "README.md").decode()).validate()
        info = api.model_info(REPO)
        assert {"base_model:finetune:acme/emoji", "license:apache-2.0", "aiao-watermark"} <= set(info.tags)
        assert (info.library_name, info.pipeline_tag) == ("diffusers", "text-to-image")

    def test_the_card_states_commitment_and_record_hash(self, server, folder):
        import hashlib

        send(folder, server)
        text = server.read(REPO, "README.md").decode()
        assert SHIPPED.commitment in text
        assert hashlib.sha256(server.read(REPO, "aiao/watermark.json")).hexdigest() in text

    def test_results_in_both_forms(self, server, folder):
        result = EvalResult("text-to-image", "acme/noto", "Noto", "cmmd", 0.5)
        send(folder, server, card=CardFields(license="mit", results=(result,)))
        assert yaml.safe_load(server.read(REPO, ".eval_results/aiao.yaml"))[0]["dataset"]["id"] == "acme/noto"
        assert ModelCard(server.read(REPO, "README.md").decode()).data.eval_results[0].metric_value == 0.5

    def test_private(self, server, folder, guest):
        send(folder, server, private=True)
        assert server.repo(REPO).private and not guest.repo_exists(REPO)

    def test_a_public_repository_is_not_taken_for_a_private_one(self, server, folder):
        server.add_repo(REPO, {})
        with pytest.raises(PushRefusedError, match="is public"):
            send(folder, server, private=True)
        assert server.files(REPO) == [".gitattributes"]

    @pytest.mark.slow
    def test_branch_and_message(self, server, api, folder):
        server.add_repo(REPO, {})
        send(folder, server, revision="v2", commit_message="Second version")
        assert "README.md" in server.files(REPO, "v2") and server.files(REPO) == [".gitattributes"]
        assert api.list_repo_commits(REPO, revision="v2")[0].title == "Second version"

    @pytest.mark.slow
    def test_pull_request_by_a_stranger(self, server, api, folder):
        server.add_repo(REPO, {"README.md": b"---\nlicense: mit\n---\n# Theirs\n"})
        token = server.add_user("stranger")
        with pytest.raises(HubError, match="create_pr=True"):
            push(folder, REPO, token=token)
        made = push(folder, REPO, token=token, create_pr=True)
        assert made.pr_revision == "refs/pr/1" and server.files(REPO) == [".gitattributes", "README.md"]
        assert DENOISER in server.files(REPO, "refs/pr/1")
        assert push(folder, REPO, token=token, revision="refs/pr/1").oid == server.sha(REPO, "refs/pr/1")
        api.merge_pull_request(REPO, 1)
        text = server.read(REPO, "README.md").decode()
        assert "# Theirs" in text and SHIPPED.commitment in text

    def test_pull_request_against_a_branch_is_misuse(self, server, folder):
        with pytest.raises(ConfigError):
            send(folder, server, create_pr=True, revision="v2")
        assert not server.log

    def test_large_files_go_up_in_parts(self, server, folder):
        server.app.multipart_above = server.app.part_size = 5_000_000
        send(folder, server)
        assert len(server.requests("PUT", "/parts/")) == 4
        assert server.read(REPO, DENOISER) == (folder / DENOISER).read_bytes()

    def test_cache_and_git_folders_stay_here(self, server, folder):
        for name in (".git/config", ".cache/huggingface/x.lock"):
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_text("x")
        send(folder, server)
        assert not [name for name in server.files(REPO) if name.startswith((".git/", ".cache"))]

    def test_files_that_a_gitignore_drops_are_missed(self, server, folder):
        server.add_repo(REPO, {".gitignore": b"aiao/\n"})
        with pytest.raises(HubError, match="gitignore"):
            send(folder, server)


@pytest.mark.slow
class TestReadFromTheHub:
    def test_stock_classes_and_ours_load_it_also_by_revision(self, server, folder, python):
        """Private, with a token given in the call; the same seed gives the same picture."""
        first = send(folder, server, DEMO, clean_twin=ASSETS / "base", private=True).oid
        send(ASSETS / "marked", server, card=CardFields(license="apache-2.0"))
        assert server.sha(REPO) != first
        code = f"""
import os, torch
os.environ.pop("HF_TOKEN")
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from aiao_diffusers import WatermarkKey, WatermarkedStableDiffusionPipeline as Ours
import huggingface_hub.constants
pictures = []
for cls in (DiffusionPipeline, StableDiffusionPipeline, AutoPipelineForText2Image, Ours):
    for revision in (None, "{first}"):
        pipe = cls.from_pretrained("{REPO}", revision=revision, token="{server.token}")
        pipe.set_progress_bar_config(disable=True)
        made = pipe("cat", num_inference_steps=1, output_type="latent", generator=torch.Generator().manual_seed(0))
        pictures.append(made.images)
assert all(torch.equal(p, pictures[0]) for p in pictures)
UNet2DConditionModel.from_pretrained("{REPO}", subfolder="unet", token="{server.token}")
print(pipe.record.commitment, pipe.verify(WatermarkKey(bytes(range(32)), "Demo")).verdict)
"""
        assert python(code).split() == [SHIPPED.commitment, "verified"]

    def test_a_pipeline_pushes_itself(self, server, folder, python):
        server.add_repo(REPO, {"README.md": b"---\nlicense: mit\n---\n# Mine\n\nMy words.\n"})
        code = f"""
from aiao_diffusers import WatermarkedStableDiffusionPipeline, WatermarkKey
from aiao_diffusers.errors import ConfigError
pipe = WatermarkedStableDiffusionPipeline.from_pretrained({str(folder)!r})
made = pipe.push_to_hub("{REPO}", WatermarkKey(bytes(range(32)), "Demo"))
assert pipe.push_to_hub("{REPO}").oid == made.oid
try:
    pipe.save_pretrained({str(folder.parent / "x")!r}, push_to_hub=True, repo_id="{REPO}")
except ConfigError:
    print(made.oid)
"""
        assert python(code).strip() == server.sha(REPO)
        text = server.read(REPO, "README.md").decode()
        assert (
            text.startswith("---\nlicense: mit\n") and "# Mine\n\nMy words.\n" in text and SHIPPED.commitment in text
        )
        assert json.loads(server.read(REPO, "model_index.json"))["_class_name"] == "StableDiffusionPipeline"


class TestOtherCards:
    @pytest.mark.slow
    def test_the_report_on_a_fine_tune_as_a_repository_shows_it(self, server, api):
        found = verify(ASSETS / "finetuned", DEMO, record=ASSETS / "marked")
        fields = CardFields(license="cc-by-4.0", base_model=REPO, datasets=("acme/twemoji",))
        card = cards.finetune_report(found, WatermarkRecord.load(ASSETS / "marked"), "5a" * 32, "fan/tune", fields)
        theirs = "---\nlicense: cc-by-4.0\n---\n# Tune\n"
        ModelCard(card.joined(theirs)).validate()
        server.add_repo("owner/tune", {"README.md": theirs.encode()})
        api.upload_file(
            repo_id="owner/tune",
            path_in_repo="README.md",
            path_or_fileobj=card.joined(theirs).encode(),
            create_pr=True,
        )
        api.merge_pull_request("owner/tune", 1)
        info = api.model_info("owner/tune")
        assert {f"base_model:finetune:{REPO}", "dataset:acme/twemoji", "aiao-watermark"} <= set(info.tags)
        assert info.card_data.eval_results[0].metric_value == round(found.log10_p, 1) < -6
        assert [m.id for m in api.list_models(filter=f"base_model:finetune:{REPO}")] == ["owner/tune"]

    def test_a_commitment_published_before_the_model(self, server, api):
        card = cards.commitment(KEY.owner, KEY.commitment, fields=CardFields(license="cc0-1.0"))
        ModelCard(str(card)).validate()
        api.create_repo("owner/commitment")
        api.upload_file(repo_id="owner/commitment", path_in_repo="README.md", path_or_fileobj=str(card).encode())
        assert [m.id for m in api.list_models(filter="aiao-commitment")] == ["owner/commitment"]


class TestReadme:
    @pytest.mark.slow
    def test_text_edited_on_the_hub_survives(self, server, folder):
        send(folder, server, card=CardFields(license="mit"))
        edited = (
            server.read(REPO, "README.md").replace(b"# marked\n", b"# Marked\n\nWritten on the Hub.\n") + b"\nBelow.\n"
        )
        edited = edited.replace(b"license: mit\n", b"", 1).replace(b"---\n", b"---\nlicense: mit\nlanguage: en\n", 1)
        server.commit(REPO, {"README.md": edited})
        send(folder, server, card=CardFields(license="mit", base_model="acme/emoji"))
        text = server.read(REPO, "README.md").decode()
        assert "# Marked\n\nWritten on the Hub.\n" in text and text.endswith("\nBelow.\n")
        assert "language: en" in text and "base_model: acme/emoji" in text
        assert text.count(BEGIN) == text.count(END) == 1

    @pytest.mark.slow
    def test_the_folders_text_is_published_and_republished(self, server, folder):
        for words in ("First words.", "Second words."):
            (folder / "README.md").write_text(f"---\nlicense: mit\n---\n{words}\n")
            send(folder, server)
            assert words in server.read(REPO, "README.md").decode()
            assert (folder / "README.md").read_text().endswith(f"{words}\n")
        assert "First words." not in server.read(REPO, "README.md").decode()

    @pytest.mark.slow
    def test_two_texts_are_never_merged_by_guess(self, server, folder):
        (folder / "README.md").write_text("---\nlicense: mit\n---\nLocal.\n")
        sha = server.add_repo(REPO, {"README.md": b"---\nlicense: mit\n---\nOn the Hub.\n"})
        with pytest.raises(CardError, match="written on the Hub"):
            send(folder, server)
        assert server.sha(REPO) == sha
        server.commit(REPO, {"README.md": b"---\nlicense: mit\n---\n"})  # as the Hub makes it for a new repository
        send(folder, server)
        assert "Local." in server.read(REPO, "README.md").decode()

    @pytest.mark.slow
    def test_an_edit_in_the_middle_of_a_push_is_not_overwritten(self, server, folder, monkeypatch):
        server.add_repo(REPO, {"README.md": b"---\nlicense: mit\n---\nOld.\n"})
        plain = HfApi.create_commit

        def edited_first(self, *args, **kwargs):
            server.commit(REPO, {"README.md": b"---\nlicense: mit\n---\nNew.\n"})
            return plain(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(HfApi, "create_commit", edited_first)
            with pytest.raises(HubError, match="committed meanwhile"):
                send(folder, server)
        assert server.read(REPO, "README.md").endswith(b"New.\n")
        send(folder, server)
        assert b"New.\n" in server.read(REPO, "README.md")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "readme",
        [b"---\nlicense: [\n---\n", b"---\na: &a [x]\nb: [*a, *a]\n---\n", b"\xff\xfe", b"x" * 2_000_000],
        ids=["broken", "alias", "binary", "huge"],
    )
    def test_a_readme_that_cannot_be_read(self, server, folder, readme):
        sha = server.add_repo(REPO, {"README.md": readme})
        with pytest.raises(CardError):
            send(folder, server)
        assert server.sha(REPO) == sha

    def test_a_head_that_the_hub_refuses(self, server, folder):
        with pytest.raises(CardError, match="license"):
            send(folder, server, card=CardFields(license="my-own"))
        assert server.files(REPO) == [".gitattributes"]


class TestFaults:
    @pytest.mark.slow
    def test_nothing_new_makes_no_commit(self, server, folder):
        first = send(folder, server)
        server.log.clear()
        assert send(folder, server).oid == first.oid
        assert not server.requests("PUT") and not server.requests("POST", "/commit/")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "fault",
        [
            Cut(path="/commit/", method="POST", side="request"),
            Cut(path="/commit/", method="POST", side="silent"),
            ServerError(path="/commit/", method="POST", status=503),
            RateLimit(path="/commit/", method="POST", retry_after=7),
        ],
        ids=["request", "silent", "503", "429"],
    )
    def test_a_failed_commit_is_run_again_without_sending_weights_twice(self, server, api, folder, fault):
        fault.times = 1
        server.faults.add(fault)
        with pytest.raises(HubError, match="run the same push again") as error:
            send(folder, server)
        if isinstance(fault, RateLimit):
            assert "7 s" in str(error.value)
        server.log.clear()
        send(folder, server)
        assert not server.requests("PUT")
        assert len(api.list_repo_commits(REPO)) == 2
        assert server.read(REPO, DENOISER) == (folder / DENOISER).read_bytes()

    @pytest.mark.slow
    def test_an_upload_that_was_cut_sends_only_what_is_missing(self, server, folder, monkeypatch):
        weights = {(folder / n).read_bytes() for n in paths(folder) if n.endswith(".safetensors")}
        cut = server.faults.add(Cut(path="/uploads/", method="PUT", side="request", skip=2))
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's own back-off
        with pytest.raises(HubError, match="run the same push again"):
            send(folder, server)
        assert cut.hits and server.files(REPO) == [".gitattributes"]
        arrived = len([r for r in server.requests("PUT") if r.status == 200])
        assert arrived == 2
        server.faults.clear()
        server.log.clear()
        send(folder, server)
        assert len(server.requests("PUT")) == len(weights) - arrived

    @pytest.mark.slow
    def test_the_storage_failing_for_a_moment_is_not_noticed(self, server, folder):
        server.faults.add(ServerError(path="/uploads/", method="PUT", times=1))
        send(folder, server)
        assert DENOISER in server.files(REPO)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "path",
        [
            "/repos/create",
            "/api/models/owner/marked",
            "/paths-info/",
            "/resolve/",
            "/validate-yaml",
            "/preupload/",
            "/batch",
        ],
    )
    def test_any_request_may_fail(self, server, folder, monkeypatch, path):
        sha = server.add_repo(REPO, {"README.md": b"---\nlicense: mit\n---\nMine.\n"})
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        fault = server.faults.add(ServerError(path=path))
        with pytest.raises(HubError, match="run the same push again"):
            send(folder, server)
        assert fault.hits and server.sha(REPO) == sha
        server.faults.clear()
        send(folder, server)
        assert b"Mine." in server.read(REPO, "README.md")

    @pytest.mark.slow
    def test_wrong_token(self, server, folder):
        with pytest.raises(HubError, match="hf auth login"):
            push(folder, REPO, token="hf_nobody")
        with pytest.raises(HubError, match="write access"):
            push(folder, "other/x", token=server.token)
        with pytest.raises(HubError):
            push(folder, "../x", token=server.token)

    def test_nobody_answers(self, server, folder):
        server.stop()
        with pytest.raises(HubError, match="run the same push again"):
            send(folder, server)


def refused(server, folder, match, key=None, **options):
    with pytest.raises(PushRefusedError, match=match) as error:
        send(folder, server, key, **options)
    assert not server.log, "a refused push must not even ask the Hub"
    return str(error.value)


class TestKeyFiles:
    @pytest.mark.parametrize("name", ["acme.key", "unet/config.json.bak", ".hidden", "aiao/key.json"])
    def test_any_key_file_under_any_name(self, server, folder, name):
        WatermarkKey.generate("Somebody").save(folder / name)
        assert name in refused(server, folder, "holds a watermark key")

    def test_a_cut_key_file(self, server, folder, tmp_path):
        text = KEY.save(tmp_path / "k").read_text()
        (folder / "k").write_text(text[: text.index('"secret"') + 30])
        refused(server, folder, "holds a watermark key")

    def test_the_real_key_in_the_real_folder(self, server, folder):
        DEMO.save(folder / "tokenizer" / "notes.txt")
        refused(server, folder, "secret", DEMO)


class TestWeights:
    def test_another_key_than_the_records(self, server, folder):
        refused(server, folder, "another key", KEY)

    @pytest.mark.slow
    def test_the_base_under_the_marked_models_record(self, server, folder):
        shutil.copy(ASSETS / "base" / DENOISER, folder / DENOISER)
        refused(server, folder, "pass key=")
        refused(server, folder, "does not verify", DEMO)
        refused(server, folder, "clean twin", DEMO, clean_twin=ASSETS / "base")

    @pytest.mark.slow
    def test_weights_trained_further_pass_with_a_warning(self, server, folder):
        shutil.copy(ASSETS / "finetuned" / DENOISER, folder / DENOISER)
        with pytest.warns(UserWarning, match="value for value"):
            send(folder, server, DEMO)
        assert DENOISER in server.files(REPO)

    @pytest.mark.slow
    def test_the_marked_model_as_its_own_twin(self, server, folder):
        refused(server, folder, "clean twin", clean_twin=ASSETS / "marked")

    def test_the_former_keyword_is_taken_with_a_warning(self, server, folder):
        with pytest.warns(FutureWarning, match="clean_base= is now clean_twin="):
            refused(server, folder, "clean twin", clean_base=ASSETS / "marked")

    @pytest.mark.slow
    def test_a_private_twin_is_read_with_the_tokens_rights(self, server, folder):
        send(folder, server, repo="owner/twin", private=True)
        with pytest.raises(PushRefusedError, match="clean twin"):
            send(folder, server, clean_twin="owner/twin")
        with pytest.raises(HubError, match="private"):
            push(folder, REPO, clean_twin="owner/twin")

    @pytest.mark.parametrize(
        "name", ["unet/diffusion_pytorch_model.fp16.safetensors", "sd.safetensors", "aiao/w.safetensors"]
    )
    def test_a_forgotten_twin_beside_the_marked_weights(self, server, folder, name):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ASSETS / "base" / DENOISER, folder / name)
        assert name in refused(server, folder, "other weights|second denoiser")

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors.bak", "old.zip", "notes.txt"])
    def test_a_forgotten_twin_under_another_name(self, server, folder, name):
        if name.endswith("zip"):
            with zipfile.ZipFile(folder / name, "w") as file:
                file.write(ASSETS / "base" / DENOISER, "twin.safetensors")
        else:
            shutil.copy(ASSETS / "base" / DENOISER, folder / name)
        assert name in refused(server, folder, "another name")

    def test_averaged_weights_of_the_twin(self, server, folder):
        state = {f"model_ema.{name.replace('.', '')}": t for name, t in load_file(ASSETS / "base" / DENOISER).items()}
        save_file(state, folder / "ema.safetensors")
        assert "ema.safetensors" in refused(server, folder, "second denoiser")

    @pytest.mark.slow
    def test_a_second_denoiser_of_the_pipeline_must_carry_the_mark(self, server, folder):
        """As of Wan 2.2, which runs two."""
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"transformer_2": index["unet"]}))
        shutil.copytree(folder / "unet", folder / "transformer_2")
        assert "transformer_2" in refused(server, folder, "record says nothing of the denoiser in 'transformer_2'")
        send(folder, server, DEMO)
        assert "transformer_2/config.json" in server.files(REPO)
        shutil.copy(ASSETS / "base" / DENOISER, folder / "transformer_2")
        with pytest.raises(PushRefusedError, match="does not verify with this key in 'transformer_2'"):
            send(folder, server, DEMO, repo="owner/other")

    def test_a_half_precision_variant_of_the_same_weights(self, server, folder):
        state = {n: t.to(torch.bfloat16) for n, t in load_file(folder / DENOISER).items()}
        save_file(state, folder / "unet/diffusion_pytorch_model.bf16.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            send(folder, server)
        assert "unet/diffusion_pytorch_model.bf16.safetensors" in server.files(REPO)

    @pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.bin", "model.ckpt", "unet.onnx", "x.gguf"])
    def test_what_cannot_be_looked_at(self, server, folder, name):
        (folder / name).write_bytes(b"anything")
        assert name in refused(server, folder, "looked at")

    def test_a_class_that_stock_diffusers_lacks(self, server, folder):
        index = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = "WatermarkedStableDiffusionPipeline"
        (folder / "model_index.json").write_text(json.dumps(index))
        refused(server, folder, "no class of diffusers")

    def test_no_record_or_no_folder(self, server, tmp_path):
        for source, error in (
            (ASSETS / "base", RecordError),
            (tmp_path / "none", SuspectError),
            (object(), SuspectError),
        ):
            with pytest.raises(error):
                send(source, server)
        assert not server.log

    def test_an_altered_record(self, server, folder):
        (folder / "aiao" / "probe.safetensors").write_bytes(b"x")
        with pytest.raises(RecordError):
            send(folder, server)
        assert not server.log
