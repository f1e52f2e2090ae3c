"""Drawing a beacon from a file: the round of the date and no other, with its signature checked."""

import json
from datetime import timedelta

import pytest
from _kind import extra

from aiao_diffusers.errors import BeaconError
from aiao_diffusers.protocol.beacon import DELAY, by_hand
from aiao_diffusers.protocol.drand import QUICKNET
from aiao_diffusers.protocol.draw import draw_beacon, read_beacon


extra("py_ecc")

from tests.protocol._rounds import PUBLISHED  # noqa: E402


DATED = QUICKNET.time_of(1000) - DELAY - timedelta(seconds=1)


@pytest.fixture
def answer(tmp_path):
    path = tmp_path / "round.json"
    path.write_text(json.dumps(PUBLISHED["quicknet"][1]))
    return path


def test_from_a_relays_answer(answer):
    beacon = draw_beacon(DATED, str(answer))
    assert beacon.round == 1000 and beacon.randomness.hex() == PUBLISHED["quicknet"][1]["randomness"]
    answer.write_text(json.dumps(beacon.to_dict()))
    assert read_beacon(answer) == beacon


def test_another_round_is_refused(answer):
    with pytest.raises(BeaconError, match="no other"):
        draw_beacon(DATED + timedelta(seconds=3), str(answer))


def test_a_signature_that_does_not_hold(answer):
    document = json.loads(answer.read_text())
    document["round"] = 1001
    answer.write_text(json.dumps(document))
    with pytest.raises(BeaconError, match="signature"):
        read_beacon(answer)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"round": 1000}', b"x" * 2**15])
def test_no_beacon(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(BeaconError):
        read_beacon(path)
    with pytest.raises(BeaconError, match="no.json"):
        read_beacon(tmp_path / "no.json")


def test_by_hand_reads_back(tmp_path):
    path = tmp_path / "hand.json"
    path.write_text(json.dumps(by_hand("x").to_dict()))
    assert read_beacon(path).source == "by_hand"


def test_a_round_that_is_not_drawn_yet():
    with pytest.raises(BeaconError, match="after that time"):
        draw_beacon(DATED + timedelta(days=365 * 30))
