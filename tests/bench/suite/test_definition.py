"""Suites: what is refused before anything is computed, and what decides a cell's identity."""

import copy
import dataclasses

import pytest
import yaml

from aiao_diffusers import EmbedConfig
from aiao_diffusers.bench.registry import METHODS
from aiao_diffusers.bench.suite.definition import parse, read_suite
from aiao_diffusers.bench.suites import shipped
from aiao_diffusers.errors import ConfigError


SMALL = """
name: small
models: {m: {path: base, data: a.safetensors}}
data: {style: b.safetensors}
marks: {ours: {method: aiao, steps: 3, checked: true}, none: {method: likeness}}
attacks:
  - {attack: none}
  - {attack: prune, amount: [0.1, 0.5], expect: verified}
  - {attack: merge, weight: [0.5, 0.25], other: [base, finetune]}
seeds: [3, 4]
"""


def small(**changes):
    return yaml.safe_load(SMALL) | changes


def test_cells_are_the_whole_product():
    cells = list(parse(small()).cells())
    assert len(cells) == (1 + 2 + 4) * 2 * 2
    prune = [cell for cell in cells if cell.attack == "prune"]
    assert {cell.hyper["amount"] for cell in prune} == {0.1, 0.5}
    assert all(cell.hyper["structured"] is False for cell in prune)  # defaults are written out
    assert {(cell.mark, cell.expect) for cell in prune} == {("ours", "verified"), ("none", None)}
    assert {(cell.seed, cell.key) for cell in cells} == {(3, 3), (4, 4)}


def test_identity_follows_what_decides_the_outcome():
    def identities(**changes):
        suite = parse(small(**changes))
        return [suite.identity(cell) for cell in suite.cells()]

    first = identities()
    assert len(set(first)) == len(first) and identities(name="other") == first
    for change in (
        {"alpha": 1e-3},
        {"trials": 9},
        {"quality": {"samples": 1}},
        {"data": {"style": "c.safetensors"}},
        {"models": {"m": {"path": "base2", "data": "a.safetensors"}}},
    ):
        assert not set(first) & set(identities(**change))
    other_steps = small()
    other_steps["marks"]["ours"]["steps"] = 4
    assert len(set(first) & set(identities(marks=other_steps["marks"]))) == len(first) // 2  # the other mark's stay


def test_an_explicit_default_is_the_same_cell():
    a, b = (parse(small(attacks=[entry])) for entry in ({"attack": "prune"}, {"attack": "prune", "amount": 0.3}))
    assert [a.identity(c) for c in a.cells()] == [b.identity(c) for c in b.cells()]


def test_a_fresh_mark_is_known_by_every_setting_and_a_finished_one_by_its_files():
    fresh = read_suite("adaptive").marks["aiao"].build()
    assert fresh.settings["anchor"] == EmbedConfig().anchor and len(fresh.settings) > len(vars(EmbedConfig()))
    assert read_suite("quick").marks["shipped"].build().settings is None


def test_a_peer_is_known_by_its_defaults_too(monkeypatch):
    def mark():
        suite = parse(small(marks={"peer": {"method": "likeness", "checked": True}}))
        return suite.mark_identity(next(suite.cells()))

    before, kind = mark(), METHODS["likeness"]
    other = dataclasses.make_dataclass("Other", [("threshold", float, 0.9)], bases=(kind,), frozen=True)
    assert kind().threshold != 0.9
    monkeypatch.setitem(METHODS, "likeness", other)
    assert mark() != before


def test_without_pictures_what_they_are_compared_by_decides_nothing():
    def identity(images, clip):
        suite = parse(small(quality={"images": images, "clip": clip}))
        return suite.identity(next(suite.cells()))

    assert identity(0, "a") == identity(0, "b") != identity(2, "a") != identity(2, "b")


@pytest.mark.parametrize("keys, wanted", [(0, {3, 4}), (1, {0}), (2, {0, 1})])
def test_keys_are_shared_among_seeds(keys, wanted):
    suite = parse(small(marks={"ours": {"method": "aiao", "keys": keys, "checked": True}}))
    assert {cell.key for cell in suite.cells()} == wanted
    assert len({suite.mark_identity(cell) for cell in suite.cells()}) == len(wanted)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"attacks": [{"attack": "prun"}]}, "unknown attack 'prun': did you mean 'prune'"),
        ({"attacks": [{"attack": "prune", "amonut": 0.1}]}, "'amonut': did you mean 'amount'"),
        ({"attacks": [{"attack": "prune", "amount": "much"}]}, "amount is 'much'"),
        ({"attacks": [{"attack": "quantise", "bits": 4.5}]}, "bits is 4.5"),
        ({"attacks": [{"attack": "quantise", "bits": True}]}, "bits is True"),
        ({"attacks": [{"attack": "none", "expect": "verifed"}]}, "did you mean 'verified'"),
        ({"attacks": []}, "at least one attack"),
        ({"attacks": [{"attack": "prune"}, {"attack": "prune", "amount": [0.1, 0.3]}]}, "stands twice"),
        ({"attacks": ["prune"]}, "must be a mapping"),
        ({"marks": {"x": {"method": "aioa"}}}, "'aioa': did you mean 'aiao'"),
        ({"marks": {"x": {"method": "aiao", "stesp": 3}}}, "'stesp': did you mean 'steps'"),
        ({"marks": {"x": {"method": "aiao", "lr": -1.0}}}, "lr must be positive"),
        ({"marks": {"x": {"method": "aiao", "marked": "folder"}}}, "both 'marked' and 'key'"),
        ({"marks": {}}, "'marks' must map"),
        ({"seeds": [1, 1]}, "repeat"),
        ({"seeds": [1.5]}, "integers"),
        ({"seeds": []}, "integers"),
        ({"seeds": [-1]}, "integers from 0"),
        ({"name": 5}, "the suite: name is 5: it must be text"),
        ({"data": {2024: "p"}}, "quote them"),
        ({"models": {"m": {"path": None, "data": "a"}}}, "path is None: it must be text"),
        ({"attacks": [{"attack": "merge", "weight": float("nan")}]}, "finite number"),
        ({"data": {"d": {"folder": "p", "where": {"kind": [None]}}}}, "texts or numbers"),
        ({"qualitty": {}}, "'qualitty': did you mean 'quality'"),
        ({"quality": {"image": 3}}, "'image': did you mean 'images'"),
        ({"quality": 5}, "must be a mapping"),
        ({"quality": {"images": 1}}, "images 0 or from 2"),
        ({"models": {"m": {"path": "x"}}}, "lacks the field 'data'"),
        ({"models": {"m": {"path": "x", "data": 5}}}, "data is 5"),
        ({"data": {"d": {"foldr": "p"}}}, "mapping with a 'folder'"),
        ({"data": {"d": {"folder": "p", "were": {}}}}, "'were': did you mean 'where'"),
        ({"data": {"d": {"folder": "p", "where": {"kind": "red"}}}}, "lists of texts"),
        ({"alpha": 2.0}, "alpha lies between"),
        ({"trials": 0}, "trials from 1"),
        ({"attacks": [{"attack": "prune", "amount": []}]}, "sweep of .'amount'. is empty"),
        ({"marks": {"x": {"method": "aiao", "keys": -2}}}, "keys from 0"),
        ({"marks": {"x": {"method": "aiao"}}}, "no mark is 'checked: true'"),
    ],
)
def test_faults_are_named_with_the_nearest_right_name(change, message):
    with pytest.raises(ConfigError, match=message):
        parse(small(**change))


def test_missing_fields_and_files(tmp_path):
    fields = small()
    del fields["name"]
    with pytest.raises(ConfigError, match="lacks the field 'name'"):
        parse(fields)
    with pytest.raises(ConfigError, match="no suite at"):
        read_suite(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="unknown suite 'quik': did you mean 'quick'"):
        read_suite("quik")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        read_suite(tmp_path / "bad.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read_suite(tmp_path / "latin.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="a suite is a mapping"):
        read_suite(tmp_path / "list.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_suites_are_sound(name):
    suite = read_suite(name)
    assert suite.name == name
    assert name in ("smoke", "distil", "long") or len(suite.seeds) >= 3
    reached = {(cell.attack, cell.expect) for cell in suite.cells()}
    assert all((entry["attack"], entry.get("expect")) in reached for entry in suite.attacks)


@pytest.mark.slow
def test_model_and_data_replace_the_suite_s():
    before = copy.deepcopy(read_suite("full"))
    suite = read_suite("full", model="user/model", data="pictures")
    assert {m.path for m in suite.models.values()} == {"user/model"} and suite.data == {"pictures": "pictures"}
    assert all(m.data == "pictures" for m in suite.models.values())
    assert suite.attacks == before.attacks and suite.marks == before.marks
    assert read_suite("full", clip="user/clip").quality.clip == "user/clip" and suite.quality == before.quality
