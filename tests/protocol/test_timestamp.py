"""A token is accepted only if a trusted authority dated this very document; all else is refused by name."""

import hashlib
import random
import sys
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from pathlib import Path

import pytest
from _kind import FULL, extra

from aiao_diffusers.errors import ConfigError, MissingExtraError, ProtocolError, TimestampError
from aiao_diffusers.protocol.timestamp import CLOCK_SKEW, MAX_TOKEN, Timestamp, check_timestamp, request_timestamp


for module in ("asn1crypto", "cryptography", "rfc3161_client"):
    extra(module)

from asn1crypto import tsp  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.hazmat.primitives.serialization import Encoding  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: E402

from tests.protocol._authority import TIME, YEAR, Authority  # noqa: E402
from tests.protocol._server import serve  # noqa: E402


ASSETS = Path(__file__).parent / "assets"
DIGEST, OTHER = (hashlib.sha256(text).digest() for text in (b"a commitment", b"another commitment"))
LATER = TIME + YEAR * 5


@cache
def authority(between: bool = False) -> Authority:
    return Authority(between=ec.generate_private_key(ec.SECP256R1()) if between else None)


def check(token, by, digest=DIGEST, now=LATER):
    return check_timestamp(token, digest, [by.root_pem], now=now)


class TestCheck:
    def test_a_token_says_when_and_who(self):
        token = authority().token(DIGEST, accuracy={"seconds": 1, "millis": 500})
        expected = Timestamp(TIME, "CN=Test Authority", timedelta(seconds=1.5), 77)
        assert check(token, authority()) == expected
        assert check(token, authority()).time.utcoffset() == timedelta(0)
        assert check(authority().token(DIGEST), authority()).accuracy is None

    def test_a_token_of_openssl(self):
        """Made by `openssl req -x509`, `openssl x509 -req`, `openssl ts -query -sha256 -cert` and `openssl ts -reply` (3.0.19),
        with `accuracy = secs:1`; `openssl ts -verify -data` accepts it.
        """
        token, root = ((ASSETS / name).read_bytes() for name in ("openssl.tsr", "openssl_root.pem"))
        digest = hashlib.sha256(b"A commitment, dated by another program.\n").digest()
        found = check_timestamp(token, digest, [authority().root_pem, root], now=datetime(2027, 1, 1, tzinfo=UTC))
        made = datetime(2026, 12, 1, 6, 21, 47, tzinfo=UTC)
        assert found == Timestamp(made, "CN=OpenSSL Test Authority", timedelta(seconds=1), 2)
        with pytest.raises(TimestampError, match="CN=OpenSSL Test Root.*not trusted"):
            check(token, authority(), digest)

    def test_a_chain_through_an_intermediate(self):
        by = authority(between=True)
        assert check(by.token(DIGEST), by).time == TIME
        with pytest.raises(TimestampError, match="'CN=Test Authority Issuer', is not trusted here"):
            check(by.token(DIGEST, certificates=[by.certificate]), by)

    def test_the_document_must_be_this_one(self):
        with pytest.raises(
            TimestampError, match=f"another document: SHA-256 '{OTHER.hex()}', expected {DIGEST.hex()}"
        ):
            check(authority().token(OTHER), authority())

    def test_a_digest_of_another_algorithm_is_not_this_digest(self):
        with pytest.raises(TimestampError, match="algorithm '2.16.840.1.101.3.4.2.8'; here it is SHA-256"):
            check(authority().token(DIGEST, algorithm="sha3_256"), authority())

    @pytest.mark.parametrize("stranger", [Authority("Other"), Authority()], ids=["another name", "the same name"])
    def test_an_authority_that_nobody_trusts(self, stranger):
        issuer = f"CN={stranger.name} Root"
        with pytest.raises(TimestampError, match=rf"'{issuer}', is not trusted here .*pass its root .*`authorities`"):
            check(stranger.token(DIGEST), authority())

    @pytest.mark.parametrize(("shift", "words"), [(-2, "it had expired"), (2, "it was not valid yet")])
    def test_a_certificate_that_was_not_valid_then(self, shift, words):
        by = Authority(valid=(TIME + (shift - 1) * YEAR, TIME + (shift + 1) * YEAR))
        with pytest.raises(TimestampError, match=rf"'CN=Test Authority' is valid from .*{words}"):
            check(by.token(DIGEST), by)

    def test_a_root_that_was_not_valid_then(self):
        by = Authority(root_valid=(TIME - 2 * YEAR, TIME - YEAR))
        with pytest.raises(TimestampError, match="a certificate above 'CN=Test Authority' was not valid"):
            check(by.token(DIGEST), by)

    def test_a_certificate_that_expired_since_is_fine(self):
        assert check(authority().token(DIGEST), authority(), now=TIME + 50 * YEAR).time == TIME

    @pytest.mark.parametrize(
        ("usages", "critical"),
        [
            ([], True),
            ([ExtendedKeyUsageOID.SERVER_AUTH], True),
            ([ExtendedKeyUsageOID.TIME_STAMPING, ExtendedKeyUsageOID.SERVER_AUTH], True),
            ([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], True),
            ([ExtendedKeyUsageOID.TIME_STAMPING], False),
        ],
    )
    def test_a_certificate_for_something_else(self, usages, critical):
        by = Authority(usages=usages, critical=critical)
        with pytest.raises(TimestampError, match="'CN=Test Authority' has no certificate for time-stamping"):
            check(by.token(DIGEST), by)

    @pytest.mark.parametrize("first", [0, 1])
    def test_one_certificate_shown_and_another_signed_with(self, first):
        """A web server's certificate of a trusted root, beside a self-made one of the same names that is for time-stamping."""
        by = Authority(usages=[ExtendedKeyUsageOID.SERVER_AUTH])
        fake = by.issue(ec.generate_private_key(ec.SECP256R1()), usages=[ExtendedKeyUsageOID.TIME_STAMPING])
        both = [fake, by.certificate] if first == 0 else [by.certificate, fake]
        with pytest.raises(TimestampError, match="holds 2 certificates of its signer"):
            check(by.token(DIGEST, certificates=both), by)
        with pytest.raises(TimestampError, match="not trusted here"):
            check(by.token(DIGEST, certificates=[fake]), by)

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            ({"signatures": 0}, "0 signatures"),
            ({"signatures": 2}, "2 signatures"),
            ({"certificates": []}, "0 certificates of its signer"),
            ({"status": 1}, "status 1, granted with changes"),
            ({"status": 2}, r"status 2, rejection \('no'\)"),
            ({"status": 3}, "status 3, waiting"),
        ],
    )
    def test_what_is_no_whole_token(self, fault, words):
        with pytest.raises(TimestampError, match=words):
            check(authority().token(DIGEST, **fault), authority())

    @pytest.mark.parametrize(
        "token",
        [
            b"",
            b"\0",
            b"not a token",
            b"<html>" * 100,
            b"\x30\x80",
            bytes(MAX_TOKEN),
            bytes(MAX_TOKEN + 1),
            "text",
            None,
        ],
        ids=lambda token: repr(token)[:12],
    )
    def test_garbage(self, token):
        with pytest.raises(TimestampError, match="malformed|a token is 1 to"):
            check(token, authority())

    def test_a_clock_may_be_behind_by_five_minutes(self):
        token = authority().token(DIGEST)
        eastern = timezone(timedelta(hours=9))
        assert check(token, authority(), now=(TIME - CLOCK_SKEW).astimezone(eastern)).time == TIME
        with pytest.raises(TimestampError, match=r"lies 0:05:01 in the future \(allowed: 0:05:00\)"):
            check(token, authority(), now=TIME - CLOCK_SKEW - timedelta(seconds=1))
        with pytest.raises(TimestampError, match="in the future"):  # by this machine's own clock
            by = Authority(valid=(TIME, TIME + 2000 * YEAR), root_valid=(TIME, TIME + 2000 * YEAR))
            check_timestamp(by.token(DIGEST, TIME + 1000 * YEAR), DIGEST, [by.root_pem])

    def test_what_the_caller_got_wrong(self):
        token, root = authority().token(DIGEST), authority().root_pem
        for digest in (b"", DIGEST[:31], DIGEST.hex(), None):
            with pytest.raises(ConfigError, match="not 32 bytes"):
                check_timestamp(token, digest, [root])
        for authorities in ([], (), root, None):
            with pytest.raises(ConfigError, match="pass the PEM root certificates"):
                check_timestamp(token, DIGEST, authorities)
        for pem in (b"", b"garbage", root[:-40], authority().root.public_bytes(Encoding.DER), None):
            with pytest.raises(ConfigError, match=r"authorities\[1\] is no PEM certificate"):
                check_timestamp(token, DIGEST, [root, pem])
        with pytest.raises(ConfigError, match="no time zone"):
            check_timestamp(token, DIGEST, [root], now=datetime(2027, 1, 1))

    def test_several_roots_in_one_file_and_one_twice(self):
        root = authority().root_pem
        pems = [Authority("Other").root_pem + root, root]
        assert check_timestamp(authority().token(DIGEST), DIGEST, pems, now=LATER).time == TIME

    @pytest.mark.parametrize("between", [False, True])
    def test_altered_tokens_say_the_same_or_are_refused(self, between):
        """Bytes outside the signature (version numbers, the name of the algorithm) may differ; what the token says may not."""
        by = authority(between)
        token = by.token(DIGEST)
        truth, rng, kept = check(token, by), random.Random(20260304), 0
        rounds = 2500 if FULL else 150
        for _ in range(rounds):
            altered = alter(token, rng)
            try:
                found = check(altered, by)
            except TimestampError:
                continue
            assert found == truth
            kept += altered != token
        assert kept < rounds * 0.03  # else this checks nothing

    def test_no_altered_token_dates_another_document(self):
        rng, token = random.Random(5), authority().token(DIGEST)
        where = token.index(DIGEST)
        for _ in range(2500 if FULL else 150):
            altered = alter(token[:where] + OTHER + token[where + 32 :], rng)
            with pytest.raises(TimestampError):
                check(altered, authority(), OTHER)


def alter(token: bytes, rng: random.Random) -> bytes:
    """A flipped bit, other bytes, a cut, a doubled or removed piece."""
    where, length = rng.randrange(len(token)), rng.randint(1, 8)
    match rng.randrange(5):
        case 0:
            return token[:where] + bytes([token[where] ^ 1 << rng.randrange(8)]) + token[where + 1 :]
        case 1:
            return token[:where] + rng.randbytes(length) + token[where + length :]
        case 2:
            return token[:where]
        case 3:
            return token[: where + length] + token[where:]
        case _:
            return token[:where] + token[where + length :]


class TestRequest:
    def test_a_token_answers_and_checks(self):
        now = datetime.now(UTC)
        by = Authority(valid=(now - YEAR, now + YEAR), root_valid=(now - YEAR, now + YEAR))
        with serve(lambda path, body: (200, by.answer(body))) as (url, seen):
            token = request_timestamp(DIGEST, f"{url}/tsr")
        assert seen[0][0] == "/tsr" and seen[0][1]["Content-Type"] == "application/timestamp-query"
        assert abs(check_timestamp(token, DIGEST, [by.root_pem]).time - now) < timedelta(minutes=1)

    def test_no_two_requests_are_alike(self):
        nonces = []

        def answer(path, body):
            nonces.append(tsp.TimeStampReq.load(body, strict=True)["nonce"].native)
            return 200, authority().answer(body)

        with serve(answer) as (url, _):
            for _ in range(8):
                request_timestamp(DIGEST, url)
        assert len(set(nonces)) == 8 and all(2**62 <= nonce < 2**63 for nonce in nonces)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"nonce": 5}, "another request"),
            ({"nonce": None}, "another request"),
            ({"digest": OTHER}, "another document"),
            ({"status": 2}, "rejection"),
            ({"algorithm": "sha3_256"}, "here it is SHA-256"),
        ],
    )
    def test_an_answer_to_something_else(self, changes, words):
        with serve(lambda path, body: (200, authority().answer(body, **changes))) as (url, _):
            with pytest.raises(TimestampError, match=rf"{url}.*{words}"):
                request_timestamp(DIGEST, url)

    def test_an_answer_that_is_none(self):
        for answer, words in ((b"<html>", "malformed"), (b"", "a token is 1 to"), (bytes(MAX_TOKEN + 1), "more than")):
            with serve(lambda path, body, answer=answer: (200, answer)) as (url, _):
                with pytest.raises(TimestampError, match=words):
                    request_timestamp(DIGEST, url)

    def test_nothing_is_sent_for_what_is_no_digest(self):
        with serve(lambda path, body: (200, b"")) as (url, seen):
            with pytest.raises(ConfigError, match="not 32 bytes"):
                request_timestamp(b"document", url)
        assert seen == []


def test_without_the_extra(monkeypatch):
    token = authority().token(DIGEST)
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    for call in (lambda: check(token, authority()), lambda: request_timestamp(DIGEST, "http://127.0.0.1:1")):
        with pytest.raises(MissingExtraError, match=r"pip install 'aiao_diffusers\[evidence\]'"):
            call()


def test_its_errors_are_of_the_protocol():
    assert issubclass(TimestampError, ProtocolError)
