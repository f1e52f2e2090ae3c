"""What an installation must bring: the copy under test, both commands, and card templates that render."""

import importlib
import json
import sysconfig
from importlib import metadata, resources
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import jinja2
import pytest

from aiao_diffusers import errors


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


@pytest.mark.parametrize(
    ("former", "present", "name"),
    [
        ("cards", "publishing.cards", "CardFields"),
        ("data", "denoiser.inputs", "LatentData"),
        ("data", "denoiser.encode", "prepare"),
        ("record", "mark.record", "WatermarkRecord"),
    ],
)
def test_former_module_names_lead_to_the_present_ones(former, present, name):
    old, new = (importlib.import_module(f"aiao_diffusers.{module}") for module in (former, present))
    assert getattr(old, name) is getattr(new, name) and set(old.__all__) <= set(dir(old))


@pytest.mark.parametrize("name", ["marked_model", "finetune_report", "commitment"])
def test_card_templates_are_installed_and_parse(name):
    """What they say is tested in `publishing/test_cards.py`."""
    source = resources.files("aiao_diffusers.hub_cards").joinpath(f"{name}.md.jinja").read_text("utf-8")
    with pytest.raises(jinja2.UndefinedError):  # a missing value raises, it does not print as nothing
        jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(source).render()
