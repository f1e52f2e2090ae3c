"""What an installation must bring: the copy under test, both commands, and card templates that render."""

import json
import sysconfig
from importlib import metadata, resources
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import jinja2
import pytest
import yaml

from aiao_diffusers import errors


BEGIN, END = "<!-- aiao:begin -->", "<!-- aiao:end -->"
CARD = {
    "license": "apache-2.0",
    "pipeline_tag": "text-to-image",
    "tags": ["stable-diffusion"],
    "model_name": "emoji-diffusion-marked",
    "repo_id": "acme/emoji-diffusion-marked",
    "owner": "Acme Labs",
    "scheme": "aiao-1",
    "commitment": "c0" * 32,
    "record_sha256": "5a" * 32,
}


def render(**changes):
    template = resources.files("aiao_diffusers.hub_cards").joinpath("marked_model.md.jinja").read_text("utf-8")
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template).render({**CARD, **changes})


def front_matter(card):
    """The YAML part as a dictionary, and the text after it."""
    head, text = card.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), text


def test_the_installed_copy_is_the_one_imported():
    distribution = metadata.distribution("aiao_diffusers")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        expected = Path(url2pathname(urlparse(origin["url"]).path)) / "aiao_diffusers" / "errors.py"
    else:
        expected = Path(distribution.locate_file("aiao_diffusers/errors.py"))
    assert Path(errors.__file__).resolve() == expected.resolve()


@pytest.mark.parametrize("command", ["aiao", "hf-aiao"])
def test_command_is_installed(command):
    found = metadata.entry_points(group="console_scripts", name=command)
    assert [entry.value for entry in found] == ["aiao_diffusers.cli:main"]
    assert Path(sysconfig.get_path("scripts"), command).is_file()


def test_library_is_marked_as_typed():
    assert resources.files("aiao_diffusers").joinpath("py.typed").is_file()


class TestMarkedModelCard:
    def test_front_matter(self):
        card = render(base_model="acme/emoji-diffusion")
        assert card.startswith("---\n")  # the Hub reads YAML from the first byte or not at all
        data, _ = front_matter(card)
        assert data == {
            "license": "apache-2.0",
            "base_model": "acme/emoji-diffusion",
            "base_model_relation": "finetune",
            "library_name": "diffusers",
            "pipeline_tag": "text-to-image",
            "tags": ["stable-diffusion", "aiao-watermark"],
        }

    def test_unknown_base_is_left_out(self):
        data, _ = front_matter(render())
        assert "base_model" not in data and "base_model_relation" not in data

    def test_tag_is_not_repeated(self):
        assert front_matter(render(tags=["aiao-watermark"]))[0]["tags"] == ["aiao-watermark"]

    def test_yaml_survives_odd_values(self):
        data, _ = front_matter(render(license="other", license_name='a: "b" # c\n---', license_link="LICENSE.md"))
        assert data["license_name"] == 'a: "b" # c\n---'
        assert data["license_link"] == "LICENSE.md"

    @pytest.mark.parametrize("field", sorted(CARD))
    def test_a_missing_value_raises(self, field):
        with pytest.raises((jinja2.UndefinedError, TypeError)):  # TypeError where `tojson` meets it first
            render(**{field: jinja2.StrictUndefined(name=field)})

    def test_public_record_is_printed(self):
        _, text = front_matter(render())
        for field in ("owner", "scheme", "commitment", "record_sha256"):
            assert CARD[field] in text

    def test_generated_part_sits_between_one_pair_of_markers(self):
        _, text = front_matter(render())
        assert text.count(BEGIN) == text.count(END) == 1
        assert text.strip().startswith(BEGIN) and text.strip().endswith(END)

    @pytest.mark.parametrize("field", ["owner", "model_name"])
    def test_a_name_cannot_close_the_generated_part(self, field):
        _, text = front_matter(render(**{field: f"Acme\n{END}\n<script>"}))
        assert text.count(END) == 1 and "<script>" not in text
