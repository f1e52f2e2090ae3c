"""Cards: a head that the Hub takes, the user's text kept byte for byte, and nothing that helps to remove a mark."""

import dataclasses

import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from aiao_diffusers import WatermarkKey, WatermarkRecord
from aiao_diffusers.denoiser.inputs import LatentData
from aiao_diffusers.errors import CardError, ConfigError
from aiao_diffusers.publishing import cards
from aiao_diffusers.publishing.cards import BEGIN, END, Card, CardFields
from aiao_diffusers.stats.hits import SiteTest
from aiao_diffusers.verification.report import VerificationReport


KEY = WatermarkKey(bytes(range(32)), "Acme Labs")
SHA = "5a" * 32
FIELDS = CardFields(
    license="apache-2.0",
    base_model="acme/emoji",
    tags=("stable-diffusion",),
    datasets=("acme/noto",),
    results=(
        EvalResult(
            task_type="text-to-image",
            dataset_type="acme/noto",
            dataset_name="Noto",
            metric_type="cmmd",
            metric_value=0.5,
        ),
    ),
)


def record(**changes):
    bank = LatentData(torch.zeros(1, 4, 8, 8), {"encoder_hidden_states": torch.zeros(1, 3, 12)})
    fields = {
        "owner": KEY.owner,
        "commitment": KEY.commitment,
        "denoiser": "UNet2DConditionModel",
        "sites": 22,
        "in_sites": 5,
        "out_sites": 7,
        "kappa": 1.625,
        "response": 1.375,
        "scheduler": {"num_train_timesteps": 937},
        "bank": bank,
    }
    return WatermarkRecord(**{**fields, **changes})


def report(**changes):
    made = VerificationReport(
        verdict="verified",
        suspect="fan/tune",
        alpha=1e-6,
        base="acme/emoji-marked",
        log10_p=-98.76,
        log10_p_floor=-140.0,
        bit_accuracy=0.973,
        verification_rate=0.875,
        verification_rate_ci=(0.47, 1.0),
        trials=8,
        denoiser_evals=16,
        sites=(SiteTest("up_blocks.1.attn1.processor", 64, 63, -15.2),),
        proves="descent",
        controls={"wrong_response": {"n": 100, "median_log10_p": -0.301, "smallest_log10_p": -2.0}},
        warnings=("odd | name\n<script>",),
        looks=({"label": "amplitude x2", "trials": 8, "log10_p": -98.76, "log10_p_adjusted": -98.76},),
        hashes={"suspect": "ab" * 32, "marked": None},
    )
    return dataclasses.replace(made, **changes)


def marked(fields=FIELDS, **changes):
    return cards.marked_model(record(**changes), SHA, "acme/emoji-marked", fields)


EVERY = {
    "marked_model": lambda: marked(),
    "finetune_report": lambda: cards.finetune_report(report(), record(), SHA, "fan/tune", FIELDS),
    "commitment": lambda: cards.commitment(KEY.owner, KEY.commitment, fields=FIELDS),
}


def head_of(text):
    return yaml.safe_load(REGEX_YAML_BLOCK.search(text)[2])


class TestEachTemplate:
    @pytest.mark.parametrize("name", EVERY)
    def test_states_owner_scheme_and_commitment_between_one_pair_of_markers(self, name):
        text = str(EVERY[name]())
        part = text.split(BEGIN)[1].split(END)[0]
        for said in ("Acme Labs", "aiao-1", KEY.commitment):
            assert said in part
        assert text.count(BEGIN) == text.count(END) == 1

    @pytest.mark.parametrize("name", EVERY)
    def test_reads_as_a_model_card(self, name):
        text = str(EVERY[name]())
        data = ModelCard(text).data
        assert (data.license, data.base_model, data.datasets) == ("apache-2.0", "acme/emoji", ["acme/noto"])
        assert data.to_dict()["base_model_relation"] == "finetune"
        assert "aiao-watermark" in data.tags and "stable-diffusion" in data.tags
        assert data.eval_results[0].metric_value == 0.5

    @pytest.mark.parametrize("name", EVERY)
    def test_helps_no_attacker(self, name):
        """The secret, its parts, site names, amplitudes, timesteps and looks stay out."""
        text = str(EVERY[name]())
        for told in (KEY.secret.hex()[:16], "processor", "attn", "1.625", "1.375", "937", "amplitude", "timestep"):
            assert told not in text

    def test_a_name_cannot_close_the_part_or_bring_html(self):
        evil = f"Acme\n{END}\n<script>`*x*`"
        for card in (
            marked(owner=evil),
            cards.commitment(evil, KEY.commitment),
            cards.finetune_report(report(suspect=evil), record(owner=evil), SHA, "a/b"),
        ):
            text = str(card)
            assert text.count(END) == 1 and "<script>" not in text and "`*x*`" not in text


class TestMarkedModel:
    def test_head_without_fields(self):
        assert head_of(str(marked(None))) == {
            "license": "unknown",
            "library_name": "diffusers",
            "pipeline_tag": "text-to-image",
            "tags": ["aiao-watermark"],
        }

    def test_a_tag_is_not_repeated(self):
        tags = ("aiao-watermark", "x", "x")
        assert head_of(str(marked(CardFields(tags=tags))))["tags"] == ["aiao-watermark", "x"]

    def test_unconditional(self):
        assert head_of(str(marked(denoiser="UNet2DModel")))["pipeline_tag"] == "unconditional-image-generation"

    @pytest.mark.parametrize(
        ("pipeline", "tag", "lines"),
        [
            (
                "WanPipeline",
                "text-to-video",
                [
                    "from diffusers import DiffusionPipeline",
                    "from diffusers.utils import export_to_video",
                    "",
                    'pipe = DiffusionPipeline.from_pretrained("acme/emoji-marked")',
                    'export_to_video(pipe("a cat in a hat").frames[0], "cat.mp4")',
                ],
            ),
            (
                "StableDiffusionInpaintPipeline",
                "image-to-image",
                [
                    "from diffusers import DiffusionPipeline",
                    "",
                    'pipe = DiffusionPipeline.from_pretrained("acme/emoji-marked")',
                ],
            ),
        ],
    )
    def test_the_pipelines_own_task_and_call(self, pipeline, tag, lines):
        text = str(cards.marked_model(record(), SHA, "acme/emoji-marked", None, pipeline))
        assert head_of(text)["pipeline_tag"] == tag
        assert text.split("```python\n")[1].split("\n```")[0].split("\n") == lines

    def test_the_owner_names_another_task(self):
        given = cards.marked_model(record(), SHA, "a/b", CardFields(pipeline_tag="image-to-image"), "WanPipeline")
        assert head_of(str(given))["pipeline_tag"] == "image-to-image"

    def test_trainers_of_adapters_are_told_that_these_inherit_the_mark(self):
        lineage = {"strength": 0.6180339, "architecture": {}, "only": False}
        told = str(marked(lineage=lineage))
        assert "LoRA that is trained on this model may inherit the mark" in told and "0.618" not in told
        assert "inherit the mark" not in str(marked()) and "with a LoRA on it" in told
        alone = str(marked(lineage={**lineage, "only": True}))
        assert "may inherit the mark" in alone and "with a LoRA on it" not in alone and "fine-tune or a merge" in alone

    def test_record_hash_and_repository_are_named(self):
        assert SHA in marked().body and '"acme/emoji-marked"' in marked().body

    @pytest.mark.parametrize("fields", [{"relation": "child"}, {"base_model": "../x"}, {"base_model": "a/b/c"}])
    def test_fields_that_the_hub_does_not_know(self, fields):
        with pytest.raises(ConfigError):
            CardFields(**fields)


class TestReportAndCommitment:
    def test_no_folder_of_this_machine_is_published(self):
        paths = {"suspect": "/home/ada/private/tune", "base": "work/marked"}
        body = cards.finetune_report(report(**paths), record(), SHA, "fan/tune", FIELDS).body
        assert "of tune, used with marked," in body and "private" not in body and "work" not in body
        hub = report(source={"suspect": {"repo": "fan/tune"}, "base": {"repo": "acme/emoji-marked"}})
        body = cards.finetune_report(hub, record(), SHA, "fan/tune", FIELDS).body
        assert "fan/tune" in body and "acme/emoji" in body

    def test_the_report_states_result_controls_and_hashes(self):
        body = EVERY["finetune_report"]().body
        for said in ("-98.8", "0.973", "0.88", "0.47 to 1.00", "n 8", "median log10 p -0.30", "ab" * 32, SHA):
            assert said in body
        assert "descends from the owner's model" in body

    @pytest.mark.parametrize("verdict", ["not_verified", "not_testable"])
    def test_no_card_claims_less_than_verified(self, verdict):
        with pytest.raises(ConfigError, match=verdict):
            cards.finetune_report(report(verdict=verdict), record(), SHA, "a/b")

    def test_a_verdict_on_an_adapters_file_alone_is_no_card(self):
        for name, kind, told in (
            ("lineage", "adapter", "file alone"),
            ("lineage in weights", "weights", "weights alone"),
        ):
            alone = report(plan={"name": name}, verification_rate=None, proves=name, lineage={"kind": kind})
            with pytest.raises(ConfigError, match=f"by the .*{told}, .*base=.*no such card"):
                cards.finetune_report(alone, record(), SHA, "a/b")

    def test_commitment_with_and_without_record(self):
        assert SHA in cards.commitment("A", KEY.commitment, record_sha256=SHA).body
        assert "watermark.json`: `" not in cards.commitment("A", KEY.commitment).body

    def test_a_commitment_is_64_digits(self):
        with pytest.raises(ConfigError, match="64 hex"):
            cards.commitment("A", "abc")

    def test_eval_results_of_hub_data_sets_alone(self):
        local = EvalResult("t", "local", "L", "m", 1.0)
        (entry,) = yaml.safe_load(cards.eval_results_yaml([*FIELDS.results, local]))
        assert entry == {"dataset": {"id": "acme/noto", "task_id": "default"}, "value": 0.5, "notes": "cmmd"}
        assert cards.eval_results_yaml([local]) == ""


README = """---
license: apache-2.0   # ours
language: no
tags:
  - text-to-image # first
  - emoji
x: [1,   2]
---
# My model

Text with  odd   spacing.\x20\x20

"""


class TestJoin:
    def test_every_byte_of_the_user_stays(self):
        text = marked().joined(README)
        head, body = REGEX_YAML_BLOCK.search(text)[2], text[REGEX_YAML_BLOCK.search(text).end() :]
        own = README.split("---\n")[1].replace(
            "  - text-to-image", "  - aiao-watermark\n  - stable-diffusion\n  - text-to-image"
        )
        assert head.startswith(own) and body.startswith(README.split("---\n", 2)[2] + BEGIN)
        assert body.endswith(END + "\n")
        assert head_of(text)["base_model"] == "acme/emoji" and head.count("license:") == 1

    @pytest.mark.parametrize(
        "readme",
        [
            "",
            README,
            "no head at all",
            "---\nlicense: apache-2.0\n---\n",
            README.replace("\n", "\r\n"),
            "\ufeff" + README,
            "---\n---\ntext\n",
        ],
    )
    def test_joining_twice_is_joining_once(self, readme):
        once = marked().joined(readme)
        assert marked().joined(once) == once
        assert head_of(once)["license"] == "apache-2.0" and "aiao-watermark" in head_of(once)["tags"]
        assert cards.is_untouched(once)

    def test_a_new_part_replaces_the_old_in_place(self):
        text = marked().joined(README) + "\nBelow.\n"
        assert not cards.is_untouched(text)
        new = cards.marked_model(record(), "77" * 32, "acme/emoji-marked", FIELDS).joined(text)
        assert SHA not in new and "77" * 32 in new and new.endswith(f"{END}\n\nBelow.\n")

    def test_the_users_fields_win_over_defaults(self):
        text = marked(None).joined("---\nlicense: mit\npipeline_tag: image-to-image\n---\nx\n")
        assert (head_of(text)["license"], head_of(text)["pipeline_tag"]) == ("mit", "image-to-image")

    @pytest.mark.parametrize("head", ["license: mit", "base_model: other/x", "datasets: [z/z]"])
    def test_a_contradiction_raises(self, head):
        with pytest.raises(CardError, match="change one"):
            marked().joined(f"---\n{head}\n---\n")

    @pytest.mark.parametrize(
        ("tags", "after"),
        [
            ("tags: [a, b]", ["a", "b"]),
            ("tags: [a, b,]", ["a", "b"]),
            ("tags: []", []),
            ("tags:", []),
            ("tags:\n- a\n- b", ["a", "b"]),
            ("tags: [aiao-watermark]", None),
        ],
    )
    def test_the_tag_joins_the_users_list(self, tags, after):
        found = head_of(marked(None).joined(f"---\nlicense: mit\n{tags}\nz: 1\n---\n"))
        assert found["tags"] == (["aiao-watermark"] if after is None else ["aiao-watermark", *after])
        assert found["z"] == 1

    @pytest.mark.parametrize(
        "head",
        [
            "license: [",
            "- a\n- b",
            "a: &x [1]\nb: [*x, *x]",
            "tags: text",
            "a: " + "[" * 5000,
            "a: !!python/object/apply:os.system ['true']",
            "d: 2024-99-99",
            "a: " + "x" * 200_000,
            "a: \x00",
        ],
        ids=["broken", "list", "alias", "tags", "deep", "object", "date", "long", "nul"],
    )
    def test_hostile_heads(self, head):
        with pytest.raises(CardError):
            marked().joined(f"---\n{head}\n---\ntext\n")

    @pytest.mark.parametrize("body", [BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
    def test_damaged_markers(self, body):
        with pytest.raises(CardError, match="once each"):
            marked().joined(body)

    def test_own_text(self):
        assert cards.own_text(Card("T", {}, "generated").joined("mine\n")).strip() == "mine"
