"""What a report says of a record's date: each missing link is named, each false one is refused."""

import dataclasses
import json
from datetime import UTC, date, datetime, timedelta

import pytest
from _kind import extra
from _tiny import commit_tiny, learner, mark_pairs

from aiao_diffusers import WatermarkKey, verify
from aiao_diffusers.errors import BeaconError, ConfigError, TimestampError
from aiao_diffusers.protocol.beacon import DELAY, by_hand, from_drand, round_after
from aiao_diffusers.protocol.drand import QUICKNET
from aiao_diffusers.verification.dating import DatingTerms, date_record


for module in ("asn1crypto", "cryptography", "py_ecc", "rfc3161_client"):
    extra(module)

from tests.protocol._authority import Authority  # noqa: E402
from tests.protocol._rounds import PUBLISHED  # noqa: E402


KEY = WatermarkKey(bytes(range(32)), "Demo")
ROUND = from_drand(PUBLISHED["quicknet"][1])
DATED = QUICKNET.time_of(1000) - DELAY - timedelta(seconds=1)
YEARS = (DATED - timedelta(days=900), DATED + timedelta(days=900))
LATER = "2023-08-25"


@pytest.fixture(scope="module")
def authority():
    return Authority(valid=YEARS, root_valid=YEARS)


@pytest.fixture(scope="module")
def draft():
    return commit_tiny(None)[1]


def encoded(beacon):
    return json.dumps(beacon.to_dict()).encode()


@pytest.fixture(scope="module")
def record(authority, draft):
    token = authority.token(bytes.fromhex(draft.sha256), DATED)
    return draft.with_companions(timestamp=token, beacon=encoded(ROUND)).to_record("0" * 64)


def told(record, authority=None, published=LATER, *, commitments=1, trusted=True):
    roots = None if authority is None else [authority.root_pem]
    return date_record(record, DatingTerms.read(published, roots), commitments=commitments, trusted=trusted)


def changed(record, **files):
    return dataclasses.replace(record, companions=dataclasses.replace(record.companions, **files))


class TestDated:
    def test_the_round_is_the_one_that_the_date_calls_for(self):
        assert round_after(DATED + DELAY) == 1000

    def test_nothing_is_left_to_believe(self, record, authority):
        found = told(record, authority, commitments=3)
        assert found["status"] == "dated" and found["reasons"] == [] and found["commitments"] == 3
        assert found["beacon"]["round"] == 1000 and found["dated"].startswith("2023-08-23") is (DATED.day == 23)
        assert "Test Authority" in found["assumption"] and LATER in found["assumption"]

    def test_the_report_says_it_first(self, record, authority, tmp_path):
        root = tmp_path / "root.pem"
        root.write_bytes(authority.root_pem)
        options = {"record": record, "amplitudes": (1.0,), "trials": 1, "whiten": False}
        report = verify(learner()[0], KEY, published=LATER, authorities=root, **options)
        assert report.verdict == "not_verified" and report.dating["status"] == "dated"
        assert report.to_markdown().split("\n\n")[2] == report.dating["assumption"]
        assert report.dating["assumption"][:40] in report.to_html()


class TestUndated:
    def test_scheme_1(self):
        found = date_record(mark_pairs()[1], DatingTerms(), commitments=1, trusted=True)
        assert found["status"] == "undated" and "before any ancestor" in found["assumption"]

    @pytest.mark.parametrize(
        ("files", "published", "reason"),
        [
            ({"timestamp": None}, LATER, "no timestamp"),
            ({"beacon": None}, LATER, "where the randomness comes from"),
            ({}, None, "first published"),
            ({}, "2023-08-20", "no older than the suspect"),
        ],
    )
    def test_what_is_missing_is_named(self, record, authority, files, published, reason):
        found = told(changed(record, **files), authority, published)
        assert found["status"] == "undated" and reason in found["assumption"]
        assert len(found["reasons"]) == 1

    def test_randomness_by_hand(self, draft, authority):
        token = authority.token(bytes.fromhex(draft.sha256), DATED)
        made = draft.with_companions(timestamp=token, beacon=encoded(by_hand("x"))).to_record("0" * 64)
        found = told(made, authority)
        assert found["status"] == "undated" and "by hand" in found["assumption"] and found["dated"] is not None

    def test_a_bad_proof_beside_a_suspect_stops_no_verdict(self, record, authority):
        broken = changed(record, timestamp=b"x")
        assert "does not hold" in told(broken, authority, trusted=False)["assumption"]
        with pytest.raises(TimestampError):
            told(broken, authority)


class TestRefused:
    def test_an_authority_that_is_not_trusted(self, record):
        other = Authority("Other", valid=YEARS, root_valid=YEARS)
        with pytest.raises(TimestampError, match="Test Authority"):
            told(record, other)
        with pytest.raises(TimestampError):
            told(record)  # certifi does not list it either

    def test_a_token_of_another_commitment(self, record, authority):
        token = authority.token(bytes(32), DATED)
        with pytest.raises(TimestampError):
            told(changed(record, timestamp=token), authority)

    @pytest.mark.parametrize("hours", [-2, 2])
    def test_another_round_than_the_date_calls_for(self, draft, authority, hours):
        token = authority.token(bytes.fromhex(draft.sha256), DATED + timedelta(hours=hours))
        made = draft.with_companions(timestamp=token, beacon=encoded(ROUND)).to_record("0" * 64)
        with pytest.raises(BeaconError, match="and no other"):
            told(made, authority)

    def test_a_beacon_that_the_record_does_not_use(self, record, authority):
        with pytest.raises(BeaconError, match="restore the file"):
            told(changed(record, beacon=encoded(by_hand("x"))), authority)
        with pytest.raises(BeaconError):
            told(changed(record, beacon=b"{"), authority)

    @pytest.mark.parametrize("bad", ["yesterday", 5, "2026-13-01"])
    def test_no_date(self, bad):
        with pytest.raises(ConfigError, match="published"):
            DatingTerms.read(bad)

    def test_terms(self, tmp_path):
        late = datetime(2026, 11, 30, 23, 30, tzinfo=UTC)
        assert DatingTerms.read(late).published == date(2026, 11, 30)
        with pytest.raises(ConfigError, match="no.pem"):
            DatingTerms.read(None, tmp_path / "no.pem")


def test_commitments_multiply_p():
    unet, made = commit_tiny()
    record = made.to_record("0" * 64)
    options = {"record": record, "amplitudes": (1.0,), "trials": 1, "whiten": False}
    one, nine = (verify(unet, KEY, commitments=number, **options) for number in (1, 9))
    for a, b in zip(one.looks, nine.looks, strict=True):
        assert b["log10_p_adjusted"] == pytest.approx(min(0, a["log10_p_adjusted"] + 0.9542425), abs=1e-6)
    with pytest.raises(ConfigError, match="commitments"):
        verify(unet, KEY, commitments=0, **options)
