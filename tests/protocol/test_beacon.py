"""A beacon is the one round that a date calls for, with its signature; randomness by hand proves no order."""

import copy
import hashlib
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import cache

import pytest
from _kind import FULL, extra
from hypothesis import given, settings
from hypothesis import strategies as st

from aiao_diffusers.errors import BeaconError, ConfigError, ProtocolError
from aiao_diffusers.protocol import beacon as module
from aiao_diffusers.protocol.beacon import (
    DELAY,
    MAX_ANSWER,
    MAX_TEXT,
    Beacon,
    by_hand,
    check_beacon,
    check_beacon_follows,
    fetch_drand,
    from_drand,
    round_after,
)
from aiao_diffusers.protocol.drand import CHAINED, DEFAULT, KNOWN_CHAINS, QUICKNET


extra("py_ecc")

from tests.protocol._rounds import PUBLISHED, Servers  # noqa: E402
from tests.protocol._server import serve  # noqa: E402


DATED = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
SERVERS = Servers()


@cache
def published(name: str = "quicknet") -> Beacon:
    chain, document = PUBLISHED[name]
    return from_drand(document, chain=chain)


@cache
def own(number: int) -> Beacon:
    return from_drand(SERVERS.round(number), chain=SERVERS.chain)


class TestCheck:
    @pytest.mark.parametrize("name", ["quicknet", "default"])
    def test_published_rounds(self, name):
        check_beacon(published(name))
        assert published(name).randomness.hex() == PUBLISHED[name][1]["randomness"]
        assert published().time == datetime(2023, 8, 23, 15, 59, 24, tzinfo=UTC)

    @pytest.mark.parametrize("change", [{"round": 1001}, {"round": 999}, {"round": 1}])
    def test_the_signature_of_another_round(self, change):
        with pytest.raises(BeaconError, match=rf"is not that of round {change['round']} of 'quicknet'"):
            check_beacon(replace(published(), **change))

    def test_another_previous_signature(self):
        with pytest.raises(BeaconError, match="is not that of round 1000 of 'default'"):
            check_beacon(replace(published("default"), previous_signature=bytes(96)))

    def test_an_unknown_chain_is_named_by_its_hash(self):
        with pytest.raises(
            BeaconError, match=rf"{SERVERS.chain.hash}.*not trusted here; trusted: quicknet \({QUICKNET.hash}"
        ):
            check_beacon(own(5))
        check_beacon(own(5), chains=(SERVERS.chain,))
        with pytest.raises(BeaconError, match="trusted: none"):
            check_beacon(published(), chains=())

    def test_our_key_under_the_name_of_a_known_chain(self):
        named = replace(SERVERS.chain, name="quicknet", group_hash=QUICKNET.group_hash)
        with pytest.raises(BeaconError, match="not trusted here"):
            check_beacon(from_drand(SERVERS.round(5), chain=named))

    @pytest.mark.slow
    def test_a_chained_chain_of_our_own(self):
        servers = Servers(scheme=CHAINED)
        first = from_drand(servers.round(1, bytes(32)), chain=servers.chain)
        second = from_drand(servers.round(2, first.signature), chain=servers.chain)
        for beacon in (first, second):
            check_beacon(beacon, chains=(servers.chain,))
        with pytest.raises(BeaconError, match="must be 96 bytes"):
            from_drand(servers.round(2, bytes(32)), chain=servers.chain)

    def test_a_signature_is_checked_once(self, monkeypatch):
        check_beacon(published())
        before = module.signature_holds.cache_info()
        check_beacon(published())
        after = module.signature_holds.cache_info()
        assert (after.hits, after.misses) == (before.hits + 1, before.misses)


class TestFields:
    def test_randomness_is_the_hash_of_the_signature(self):
        for wrong in (bytes(32), published().randomness[:-1], published().randomness.hex(), None):
            with pytest.raises(BeaconError, match="is not what its signature gives"):
                replace(published(), randomness=wrong)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"source": "coin"}, "neither 'drand' nor 'by_hand'"),
            ({"source": "by_hand"}, "by hand has no round"),
            ({"round": None}, "round None"),
            ({"round": 0}, "round 0"),
            ({"round": True}, "round True"),
            ({"chain": None}, "needs its chain"),
            ({"text": "x"}, "has no text"),
            ({"signature": None}, "is not 48 bytes"),
            ({"signature": bytes(96)}, "is not 48 bytes"),
            ({"signature": "b4" * 24}, "is not 48 bytes"),
            ({"previous_signature": bytes(48)}, "must be absent"),
        ],
    )
    def test_of_drand(self, changes, words):
        with pytest.raises(BeaconError, match=words):
            replace(published(), **changes)

    def test_by_hand(self):
        beacon = by_hand("Lotto 2026-03-04: 1 2 3 4 5 6")
        assert beacon.randomness == hashlib.sha256(b"aiao-2 beacon by hand\0Lotto 2026-03-04: 1 2 3 4 5 6").digest()
        assert (beacon.source, beacon.time, beacon.round, beacon.chain) == ("by_hand", None, None, None)
        assert len({by_hand(text).randomness for text in ("a", "A", "a ", " a", "61", "0x61")}) == 6
        check_beacon(beacon)
        check_beacon(beacon, chains=())

    @pytest.mark.parametrize("text", ["", "  \n", "x" * (MAX_TEXT + 1), "\ud800", b"bytes", None, 5])
    def test_by_hand_needs_a_text(self, text):
        with pytest.raises(BeaconError, match="randomness by hand"):
            by_hand(text)

    def test_by_hand_bears_nothing_of_drand(self):
        with pytest.raises(BeaconError, match="by hand has no round"):
            replace(by_hand("x"), round=5)
        with pytest.raises(BeaconError, match="not what its text gives"):
            replace(by_hand("x"), randomness=published().randomness)


BEACONS = [published, lambda: published("default"), lambda: own(5), lambda: by_hand("dice: 4 4 2 ✓")]


class TestJson:
    @pytest.mark.parametrize("make", BEACONS)
    def test_round_trip(self, make):
        document = make().to_dict()
        kept = copy.deepcopy(document)
        assert next(iter(document)) == "version" and json.loads(json.dumps(document)) == document
        assert Beacon.from_dict(document) == make() and document == kept

    def test_golden(self):
        chain = {
            "hash": QUICKNET.hash,
            "public_key": QUICKNET.public_key.hex(),
            "genesis_time": 1692803367,
            "period": 3,
            "scheme": "bls-unchained-g1-rfc9380",
            "group_hash": "f477d5c89f21a17c863a7f937c6a6d15859414d2be09cd448d4279af331c5d3e",
            "name": "quicknet",
        }
        round = PUBLISHED["quicknet"][1]
        head = {"version": 1, "source": "drand", "round": 1000, "randomness": round["randomness"]}
        tail = {"signature": round["signature"], "previous_signature": None, "chain": chain}
        assert published().to_dict() == {**head, **tail}
        assert by_hand("x").to_dict() == {
            "version": 1,
            "source": "by_hand",
            "text": "x",
            "randomness": hashlib.sha256(b"aiao-2 beacon by hand\0x").hexdigest(),
        }

    @pytest.mark.parametrize("version", [0, 2, "1", True, 1.0, None])
    def test_another_version(self, version):
        with pytest.raises(BeaconError, match="this release reads version 1"):
            Beacon.from_dict({**published().to_dict(), "version": version})

    @pytest.mark.parametrize("make", BEACONS)
    def test_every_field_is_needed_and_no_other_taken(self, make):
        document = make().to_dict()
        for name in document:
            with pytest.raises(BeaconError, match=name):
                Beacon.from_dict({key: value for key, value in document.items() if key != name})
        with pytest.raises(BeaconError, match="unknown 'note'"):
            Beacon.from_dict({**document, "note": ""})
        if "chain" in document:
            for name in document["chain"]:
                inner = {key: value for key, value in document["chain"].items() if key != name}
                with pytest.raises(BeaconError, match=f"lacks '{name}'"):
                    Beacon.from_dict({**document, "chain": inner})

    def test_one_spelling_only(self):
        document = published().to_dict()
        for spelling in (str.upper, lambda text: " " + text, lambda text: text[:-1], lambda text: "0x" + text):
            with pytest.raises(BeaconError, match="randomness"):
                Beacon.from_dict({**document, "randomness": spelling(document["randomness"])})

    def test_a_chain_that_contradicts_its_hash(self):
        document = published().to_dict()
        for name, value in (("period", 30), ("genesis_time", 1), ("hash", DEFAULT.hash), ("name", "default")):
            with pytest.raises(BeaconError, match="is not that of its fields"):
                Beacon.from_dict({**document, "chain": {**document["chain"], name: value}})

    @pytest.mark.parametrize("document", [None, [], "text", 5, {}])
    def test_no_object(self, document):
        with pytest.raises(BeaconError):
            Beacon.from_dict(document)

    @pytest.mark.parametrize("make", BEACONS)
    def test_altered_documents_are_refused(self, make):
        """Nothing but the true fields comes through `from_dict` and `check_beacon`; the few changes that only the pairing could
        catch, such as another round, are its own test.
        """
        truth, rng = make(), random.Random(20260304)
        for _ in range(1250 if FULL else 75):
            altered = alter(truth.to_dict(), rng)
            try:
                found = Beacon.from_dict(altered)
            except BeaconError:
                continue
            if found == truth:
                assert altered == truth.to_dict()
            elif found.chain not in KNOWN_CHAINS:
                with pytest.raises(BeaconError, match="not trusted here"):
                    check_beacon(found) if found.chain else check_beacon_by_hand(found, truth)
            else:
                assert found.round != truth.round or found.previous_signature != truth.previous_signature

    @pytest.mark.slow
    def test_signatures_that_agree_with_their_randomness_are_refused(self):
        """A forger writes a signature and its right hash: what is left is the curve."""
        rng = random.Random(7)
        for _ in range(1500 if FULL else 60):
            signature = bytearray(published().signature)
            for _ in range(rng.randint(1, 4)):
                signature[rng.randrange(48)] ^= 1 << rng.randrange(8)
            if bytes(signature) == published().signature:
                continue
            forged = replace(published(), signature=bytes(signature), randomness=hashlib.sha256(signature).digest())
            with pytest.raises(BeaconError, match="is not that of round 1000"):
                check_beacon(forged)


def check_beacon_by_hand(found, truth):
    """Another text by hand is another beacon, and its own randomness; that is all that can be said."""
    assert found.source == "by_hand" and found.randomness == by_hand(found.text).randomness
    raise BeaconError("not trusted here")


def alter(document, rng):
    """A field of another value, kind or spelling, or one more or fewer."""
    target = document["chain"] if "chain" in document and rng.random() < 0.4 else document
    name = rng.choice(list(target))
    value = target[name]
    match rng.randrange(6):
        case 0:
            del target[name]
        case 1:
            target[rng.choice(["note", "Round", "", name + " "])] = value
        case 2:
            target[name] = rng.choice(
                [None, True, 0, -1, 1.5, 2**70, "", "00", [], {}, [value], {"a": value}, "x" * 10**5]
            )
        case 3 if isinstance(value, str) and value:
            where = rng.randrange(len(value))
            target[name] = value[:where] + rng.choice("0123456789abcdefg \ud800") + value[where + 1 :]
        case 4 if isinstance(value, str):
            target[name] = value[: rng.randrange(len(value) + 1)] * rng.choice([1, 1, 2])
        case _:
            target[name] = value + rng.choice([-1, 1, 1000]) if isinstance(value, int) else str(value)
    return document


class TestRelay:
    @pytest.mark.parametrize("name", ["quicknet", "default"])
    def test_bytes_and_objects(self, name):
        chain, document = PUBLISHED[name]
        assert from_drand(json.dumps(document).encode(), chain=chain) == published(name)
        assert from_drand({k: v for k, v in document.items() if k != "randomness"}, chain=chain) == published(name)

    def test_an_empty_previous_signature_is_none(self):
        assert from_drand({**PUBLISHED["quicknet"][1], "previous_signature": ""}) == published()

    @pytest.mark.parametrize(
        "document",
        [
            b"",
            b"[]",
            b"<html>",
            b'{"round":1000,"round":1000}',
            b" " * (MAX_ANSWER + 1),
            b"[" * 10000,
            None,
            "text",
            {},
            {"round": 1000},
            {**PUBLISHED["quicknet"][1], "extra": 1},
            {**PUBLISHED["quicknet"][1], "round": "1000"},
            {**PUBLISHED["quicknet"][1], "signature": 5},
            {**PUBLISHED["quicknet"][1], "randomness": "00" * 32},
            PUBLISHED["default"][1],
        ],
        ids=lambda document: repr(document)[:24],
    )
    def test_what_is_no_round(self, document):
        with pytest.raises(BeaconError):
            from_drand(document)

    def test_fetch(self):
        def answer(path, body):
            chain, _, round = path.removeprefix("/relay/").partition("/public/")
            assert chain == SERVERS.chain.hash
            return 200, json.dumps(SERVERS.round(9 if round == "latest" else int(round))).encode()

        with serve(answer) as (url, seen):
            assert fetch_drand(5, f"{url}/relay", chain=SERVERS.chain) == own(5)
            assert fetch_drand(url=f"{url}/relay/", chain=SERVERS.chain).round == 9
        assert [path.rpartition("/")[2] for path, _ in seen] == ["5", "latest"]

    def test_fetch_a_published_round(self):
        with serve(lambda path, body: (200, json.dumps(PUBLISHED["quicknet"][1]).encode())) as (url, seen):
            assert fetch_drand(1000, url) == published()
            assert seen[0][0] == f"/{QUICKNET.hash}/public/1000"
            with pytest.raises(BeaconError, match="answers with round 1000, asked for 1001"):
                fetch_drand(1001, url)

    def test_a_relay_that_lies(self):
        forged = Servers(secret=2).round(5)
        with serve(lambda path, body: (200, json.dumps(forged).encode())) as (url, _):
            with pytest.raises(BeaconError, match="is not that of round 5"):
                fetch_drand(5, url, chain=SERVERS.chain)

    def test_a_round_that_is_not_drawn_yet_is_not_asked_for(self):
        later = round_after(datetime.now(UTC) + timedelta(days=2))
        with serve(lambda path, body: (200, b"")) as (url, seen):
            with pytest.raises(BeaconError, match=rf"round {later} of 'quicknet' is drawn at .* UTC: fetch it after"):
                fetch_drand(later, url)
        assert seen == []

    def test_no_answer(self):
        with serve(lambda path, body: (404, b"")) as (url, _):
            with pytest.raises(BeaconError, match="HTTP status 404"):
                fetch_drand(5, url)
        with pytest.raises(ConfigError, match="no http"):
            fetch_drand(5, "api.drand.sh")


class TestOrder:
    def test_by_hand_count(self):
        genesis = QUICKNET.time_of(1)
        assert [round_after(genesis + timedelta(seconds=s)) for s in (-1e6, -0.1, 0, 0.1, 2.9, 3, 3.1)] == [
            1,
            1,
            2,
            2,
            2,
            3,
            3,
        ]

    @settings(deadline=None)
    @given(
        st.datetimes(datetime(2000, 1, 1), datetime(9000, 1, 1), timezones=st.just(UTC)),
        st.sampled_from([QUICKNET, DEFAULT, replace(QUICKNET, period=86400)]),
    )
    def test_it_is_the_first_later_round(self, moment, chain):
        found = round_after(moment, chain)
        assert chain.time_of(found) > moment
        assert found == 1 or chain.time_of(found - 1) <= moment

    def test_a_time_zone_is_needed_and_any_will_do(self):
        tokyo = DATED.astimezone(timezone(timedelta(hours=9)))
        assert round_after(tokyo) == round_after(DATED)
        for moment in (datetime(2024, 1, 1), "2024-01-01", None):
            with pytest.raises(BeaconError, match="no time zone"):
                round_after(moment)
        for moment in (datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=timezone(timedelta(hours=-9)))):
            with pytest.raises(BeaconError, match="beyond the year 9999|out of range"):
                round_after(moment)
            with pytest.raises(BeaconError):
                check_beacon_follows(published(), moment)

    @settings(max_examples=200 if FULL else 20, deadline=None)
    @given(st.integers(2, 1000), st.sampled_from([-1000, -2, -1, 1, 2, 1000]))
    def test_one_round_and_no_other(self, number, off):
        """The neighbours of the right round are refused, whatever their signature."""
        chain = SERVERS.chain
        dated = chain.time_of(number + 360) - DELAY - timedelta(seconds=chain.period / 2)
        right = round_after(dated + DELAY, chain)
        assert right == number + 360
        wrong = unsigned(max(1, right + off))
        with pytest.raises(BeaconError, match=rf"The beacon of that date is round {right}, .*and no other"):
            check_beacon_follows(wrong, dated, chain=chain)

    def test_the_right_round_follows(self):
        number = 400
        drawn = SERVERS.chain.time_of(number)
        for before in (timedelta(microseconds=1), timedelta(seconds=5), timedelta(seconds=10)):
            assert check_beacon_follows(own(number), drawn - DELAY - before, chain=SERVERS.chain) is True
        for dated in (drawn - DELAY, drawn - DELAY - timedelta(seconds=10, microseconds=1)):
            with pytest.raises(BeaconError, match="after the commitment's date"):
                check_beacon_follows(own(number), dated, chain=SERVERS.chain)

    def test_the_published_round(self):
        dated = published().time - DELAY - timedelta(seconds=2)
        assert check_beacon_follows(published(), dated) is True

    def test_a_beacon_older_than_the_commitment(self):
        with pytest.raises(
            BeaconError, match="drawn at 2023-08-23 15:59:24 UTC, before the commitment's date 2024-05-06"
        ):
            check_beacon_follows(published(), DATED)

    def test_the_right_round_unsigned(self):
        dated = SERVERS.chain.time_of(400) - DELAY - timedelta(seconds=5)
        with pytest.raises(BeaconError, match="is not that of round 400"):
            check_beacon_follows(unsigned(400), dated, chain=SERVERS.chain)

    def test_a_round_of_another_chain(self):
        """Two chains would be two draws, of which a claimant takes the better."""
        beacon = published("default")
        dated = beacon.time - DELAY - timedelta(seconds=5)
        assert check_beacon_follows(beacon, dated, chain=DEFAULT) is True
        with pytest.raises(BeaconError, match=f"{DEFAULT.hash}.*not trusted here; trusted: quicknet"):
            check_beacon_follows(beacon, dated)

    def test_by_hand_proves_nothing(self):
        assert check_beacon_follows(by_hand("dice"), DATED) is False
        with pytest.raises(BeaconError, match="no time zone"):
            check_beacon_follows(by_hand("dice"), datetime(2024, 1, 1))


def unsigned(number):
    """A round of our servers with the signature of another."""
    return replace(own(5), round=number)


def test_its_errors_are_of_the_protocol():
    assert issubclass(BeaconError, ProtocolError)
