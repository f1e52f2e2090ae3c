"""`aiao disclose`: which leaf, and what is refused. That a leaf reads is tested with `aiao commit`."""

import json

import pytest
from _tiny import commit_tiny, mark_pairs

from aiao_diffusers import WatermarkKey
from aiao_diffusers.protocol.beacon import by_hand
from aiao_diffusers.protocol.leaves import Leaf, disclose, leaf_by_beacon


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    commit_tiny(out_sites=4)[1].to_record("0" * 64).save(folder)
    return folder


def test_randomness_picks(aiao, key, record, tmp_path):
    from aiao_diffusers import WatermarkRecord

    beacon = tmp_path / "beacon.json"
    beacon.write_text(json.dumps(by_hand("the dispute of today").to_dict()))
    answer = aiao("disclose", record, "--key", key, "--beacon", beacon, "-o", tmp_path / "leaf.json", "--json")
    found = WatermarkRecord.load(record)
    number = leaf_by_beacon(by_hand("the dispute of today").randomness, found, 2)
    assert answer.json["leaf"] == number and Leaf.load(tmp_path / "leaf.json") == disclose(
        WatermarkKey.load(key), found, number
    )


def test_refusals(aiao, key, record, tmp_path):
    out = tmp_path / "leaf.json"
    aiao("disclose", record, "--key", key, "-o", out).refused("ConfigError", "--leaf N")
    aiao("disclose", record, "--key", key, "-o", out, "--leaf", 3).refused("ConfigError", "leaves 1 to 2", "3")
    aiao("disclose", tmp_path, "--key", key, "-o", out, "--leaf", 1).refused("RecordError", "record")
    mark_pairs()[1].save(tmp_path / "old")
    aiao("disclose", tmp_path / "old", "--key", key, "-o", out, "--leaf", 1).refused("LeafError", "aiao-1")
    aiao("disclose", record, "--key", key, "-o", out, "--beacon", tmp_path / "no.json").refused(
        "BeaconError", "no.json"
    )
    assert not out.exists()


def test_verify_takes_a_key_or_a_leaf(aiao, key, record, tmp_path):
    aiao("verify", record).refused("ConfigError", "--leaf")
    (tmp_path / "leaf.json").write_text("{}")
    aiao("verify", record, "--leaf", tmp_path / "leaf.json").refused("LeafError", "leaf.json")
