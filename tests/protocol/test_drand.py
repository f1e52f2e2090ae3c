"""Chains of drand: their hashes, their clock and their signatures, against published rounds and rounds of our own."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from _kind import extra

from aiao_diffusers.errors import BeaconError, MissingExtraError
from aiao_diffusers.protocol.drand import CHAINED, DEFAULT, MAX_ROUND, QUICKNET, signature_holds


extra("py_ecc")

from tests.protocol._rounds import PUBLISHED, Servers  # noqa: E402


from py_ecc import optimized_bls12_381 as curve  # noqa: E402, isort: skip
from py_ecc.bls.point_compression import compress_G1, decompress_G1  # noqa: E402, isort: skip


def test_the_hashes_are_those_that_drand_gives():
    """As in the addresses https://api.drand.sh/<hash>/info; they cover key, clock, group and name."""
    assert QUICKNET.hash == "52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971"
    assert DEFAULT.hash == "8990e7a9aaed2ffed73dbd7092123d6f289930540d7651336225dc172e51b2ce"
    changes = {"public_key": bytes(96), "genesis_time": 1, "period": 4, "group_hash": bytes(32), "name": "x"}
    assert len({replace(QUICKNET, **{name: value}).hash for name, value in changes.items()} | {QUICKNET.hash}) == 6


def test_the_clock():
    assert QUICKNET.time_of(1) == datetime(2023, 8, 23, 15, 9, 27, tzinfo=UTC)
    assert QUICKNET.time_of(1000) == datetime(2023, 8, 23, 15, 59, 24, tzinfo=UTC)
    assert DEFAULT.time_of(2) == datetime(2020, 7, 22, 15, 18, 0, tzinfo=UTC)
    for round in (0, -1, 1.0, True, "1", None, MAX_ROUND, MAX_ROUND + 1):
        with pytest.raises(BeaconError, match="round"):
            QUICKNET.time_of(round)


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": "bls-unchained-on-g1"},
        {"scheme": CHAINED},
        {"public_key": bytes(48)},
        {"public_key": "83cf"},
        {"group_hash": b""},
        {"genesis_time": 0},
        {"genesis_time": 1.5},
        {"period": 0},
        {"period": True},
        {"period": 86401},
        {"name": ""},
        {"name": "ü"},
        {"name": "x" * 65},
        {"name": None},
    ],
)
def test_a_chain_out_of_range(changes):
    with pytest.raises(
        BeaconError, match=next(iter(changes)).replace("public_key", "public_key|scheme") + "|public_key"
    ):
        replace(QUICKNET, **changes)


class TestSignature:
    @pytest.mark.parametrize("name", ["quicknet", "default"])
    def test_published_rounds(self, name):
        chain, document = PUBLISHED[name]
        signature = bytes.fromhex(document["signature"])
        previous = bytes.fromhex(document.get("previous_signature", ""))
        assert hashlib.sha256(signature).hexdigest() == document["randomness"]
        assert signature_holds(chain, chain.message(document["round"], previous), signature)
        assert not signature_holds(chain, chain.message(document["round"] + 1, previous), signature)

    @pytest.mark.slow
    def test_a_round_of_our_own_servers(self):
        servers = Servers()
        message = servers.chain.message(7, None)
        assert signature_holds(servers.chain, message, servers.sign(message))
        assert not signature_holds(servers.chain, message, Servers(secret=2).sign(message))
        assert not signature_holds(Servers(secret=2).chain, message, servers.sign(message))

    @pytest.mark.slow
    def test_a_round_has_one_signature(self):
        """A point of small order beside it passes the pairing, and would let whoever publishes a round choose its randomness."""
        chain, document = PUBLISHED["quicknet"]
        message, signature = chain.message(1000, None), bytes.fromhex(document["signature"])
        point = decompress_G1(int.from_bytes(signature, "big"))
        outside = next(found for x in range(1, 99) if (found := small_order(x)) is not None)
        forged = curve.add(point, outside)

        def paired(signed):
            return curve.pairing(curve.G2, signed)

        assert paired(forged) == paired(point)  # so that the pairing alone would accept it
        encoded = compress_G1(forged).to_bytes(48, "big")
        assert encoded != signature and not signature_holds(chain, message, encoded)
        negative = compress_G1(curve.neg(point)).to_bytes(48, "big")
        assert not signature_holds(chain, message, negative)

    @pytest.mark.parametrize(
        "signature",
        [
            b"",
            bytes(47),
            bytes(48),
            bytes(96),
            b"\xff" * 48,
            b"\xc0" + bytes(47),
            b"\xe0" + bytes(47),
            b"\x80" + bytes(47),
        ],
        ids=lambda signature: f"{len(signature)} bytes {signature[:1].hex()}",
    )
    def test_what_is_no_point(self, signature):
        assert signature_holds(QUICKNET, QUICKNET.message(1, None), signature) is False

    def test_a_public_key_that_is_no_point(self):
        for public_key in (
            b"\xff" * 96,
            b"\xc0" + bytes(95),
        ):  # the point at infinity would accept infinity for anything
            with pytest.raises(BeaconError, match="no point of its group"):
                signature_holds(replace(QUICKNET, public_key=public_key), bytes(32), b"\xc0" + bytes(47))

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "py_ecc", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'aiao_diffusers\[evidence\]'"):
            signature_holds(QUICKNET, b"not asked before", bytes(48))


def small_order(x):
    """A point of the curve outside the subgroup, multiplied into the part whose order divides the cofactor."""
    square = (x**3 + 4) % curve.field_modulus
    y = pow(square, (curve.field_modulus + 1) // 4, curve.field_modulus)
    if y * y % curve.field_modulus != square:
        return None
    point = curve.multiply((curve.FQ(x), curve.FQ(y), curve.FQ(1)), curve.curve_order)
    return None if curve.is_inf(point) else point


@pytest.mark.slow
def test_importing_the_modules_loads_none_of_the_extra():
    code = (
        "import sys, aiao_diffusers.protocol.beacon, aiao_diffusers.protocol.timestamp;"
        "print(sorted({'py_ecc', 'cryptography', 'rfc3161_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_check_leaves_pythons_recursion_limit():
    code = "import sys; before = sys.getrecursionlimit(); from aiao_diffusers.protocol.drand import _curve; _curve(); "
    code += "assert sys.getrecursionlimit() == before, sys.getrecursionlimit()"
    subprocess.run([sys.executable, "-c", code], check=True)
