"""Chains of the drand network, whose rounds nobody chooses: when a round is drawn, and whether its signature holds.

A round is a BLS signature on BLS12-381, made by a threshold of independent servers. There is one valid signature a round, so
that even they cannot choose it. Its randomness is the signature's SHA-256.
"""

import hashlib
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from ..errors import BeaconError, MissingExtraError
from ..files.text import short


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_ROUND, MAX_PERIOD = 2**53, 86400
UNCHAINED, CHAINED = "bls-unchained-g1-rfc9380", "pedersen-bls-chained"
SIGNATURE_BYTES = {UNCHAINED: 48, CHAINED: 96}
"""Signatures lie in G1 for the first scheme and in G2 for the second; public keys lie in the other group."""
_DST = {
    scheme: b"BLS_SIG_BLS12381G%d_XMD:SHA-256_SSWU_RO_NUL_" % group for scheme, group in ((UNCHAINED, 1), (CHAINED, 2))
}


@dataclass(frozen=True)
class Chain:
    """The public description of a drand chain.

    Args:
        public_key (`bytes`): of the servers together, compressed: 96 bytes for `bls-unchained-g1-rfc9380`, else 48.
        genesis_time (`int`): Unix time of round 1, seconds.
        period (`int`): seconds between rounds.
        scheme (`str`): `bls-unchained-g1-rfc9380` or `pedersen-bls-chained`.
        group_hash (`bytes`): 32 bytes, hash of the first group of servers.
        name (`str`): beacon id, as `quicknet`.
    Raises:
        BeaconError: a field out of its range, or an unknown scheme.
    Source: drand's specification.
    """

    public_key: bytes
    genesis_time: int
    period: int
    scheme: str
    group_hash: bytes
    name: str

    def __post_init__(self) -> None:
        if self.scheme not in SIGNATURE_BYTES:
            raise BeaconError(f"drand scheme {short(self.scheme)} is unknown; known: {', '.join(SIGNATURE_BYTES)}.")
        for field, size in (("public_key", 144 - SIGNATURE_BYTES[self.scheme]), ("group_hash", 32)):
            value = getattr(self, field)
            if type(value) is not bytes or len(value) != size:
                raise BeaconError(f"the chain's {field} {short(value)} is not {size} bytes.")
        for field, most in (("genesis_time", 2**40), ("period", MAX_PERIOD)):
            value = getattr(self, field)
            if type(value) is not int or not 1 <= value <= most:
                raise BeaconError(f"the chain's {field} {short(value)} is not a whole number from 1 to {most}.")
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= 64 or not self.name.isascii():
            raise BeaconError(f"the chain's name {short(self.name)} is not 1 to 64 plain characters.")

    @property
    def hash(self) -> str:
        """Hex digest by which drand names the chain; it covers all but the scheme."""
        parts = [
            self.period.to_bytes(4, "big"),
            self.genesis_time.to_bytes(8, "big"),
            self.public_key,
            self.group_hash,
        ]
        if self.name != "default":
            parts.append(self.name.encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def time_of(self, round: int) -> datetime:
        """When a round is drawn, UTC.

        Raises:
            BeaconError: no round number, or one beyond the year 9999.
        """
        if type(round) is not int or not 1 <= round <= MAX_ROUND:
            raise BeaconError(f"round {short(round)} is not a whole number from 1 to {MAX_ROUND}.")
        try:
            return EPOCH + timedelta(seconds=self.genesis_time + (round - 1) * self.period)
        except OverflowError:
            raise BeaconError(f"round {round} of {self.name!r} lies beyond the year 9999.") from None

    def message(self, round: int, previous_signature: bytes | None) -> bytes:
        """The 32 bytes that the servers sign for a round; the chained scheme signs the previous signature too."""
        return hashlib.sha256((previous_signature or b"") + round.to_bytes(8, "big")).digest()


QUICKNET = Chain(
    public_key=bytes.fromhex(
        "83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d106451"
        "0d1fec758c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a"
    ),
    genesis_time=1692803367,
    period=3,
    scheme=UNCHAINED,
    group_hash=bytes.fromhex("f477d5c89f21a17c863a7f937c6a6d15859414d2be09cd448d4279af331c5d3e"),
    name="quicknet",
)
"""The chain of this protocol: every 3 seconds since August 2023, run by the League of Entropy."""
DEFAULT = Chain(
    public_key=bytes.fromhex(
        "868f005eb8e6e4ca0a47c8a77ceaa5309a47978a7c71bc5cce96366b5d7a569937c529eeda66c7293784a9402801af31"
    ),
    genesis_time=1595431050,
    period=30,
    scheme=CHAINED,
    group_hash=bytes.fromhex("176f93498eac9ca337150b46d21dd58673ea4e3581185f869672e59fa4cb390a"),
    name="default",
)
"""The network's older chain: every 30 seconds since July 2020."""
KNOWN_CHAINS = (QUICKNET, DEFAULT)


def _curve() -> tuple[Any, Any, Any]:
    """The parts of py_ecc that are used here, imported on demand: the import takes most of a second."""
    limit = sys.getrecursionlimit()
    try:
        from py_ecc import optimized_bls12_381
        from py_ecc.bls import hash_to_curve, point_compression
    except ImportError as error:
        raise MissingExtraError(
            "checking a drand signature needs py_ecc, which is not installed: run `pip install 'aiao_diffusers[evidence]'`."
        ) from error
    finally:
        # py_ecc raises it a hundredfold for curves that are not used here: deep JSON of a stranger would then end the process.
        sys.setrecursionlimit(limit)
    return optimized_bls12_381, hash_to_curve, point_compression


@lru_cache(maxsize=64)
def _point(encoded: bytes) -> Any:
    """The point of a compressed encoding, 48 bytes in G1 and 96 in G2.

    A point outside the subgroup of prime order would pass the pairing with a signature changed by a point of small order: who
    publishes the beacon could then choose among many encodings of one round, and so among many randomnesses.

    Raises:
        ValueError: no point of the curve, the point at infinity, or a point outside the subgroup.
    """
    curve, _, compression = _curve()
    numbers = [int.from_bytes(encoded[start : start + 48], "big") for start in range(0, len(encoded), 48)]
    point = compression.decompress_G1(numbers[0]) if len(numbers) == 1 else compression.decompress_G2(tuple(numbers))
    if curve.is_inf(point) or not curve.is_inf(curve.multiply(point, curve.curve_order)):
        raise ValueError("the point is not in the group of prime order")
    return point


@lru_cache(maxsize=1024)
def signature_holds(chain: Chain, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is the one valid signature of `chain` under `message`; about half a second, remembered.

    Args:
        chain (`Chain`): whose public key counts.
        message (`bytes`): 32 bytes of `Chain.message`.
        signature (`bytes`): compressed, 48 or 96 bytes by the chain's scheme.
    Raises:
        MissingExtraError: py_ecc is not installed. BeaconError: the chain's own public key is no point of its group.
    Source: BLS signatures (draft-irtf-cfrg-bls-signature), hashing to curves (RFC 9380); arithmetic of py_ecc.
    """
    curve, hashing, _ = _curve()
    if len(signature) != SIGNATURE_BYTES[chain.scheme]:
        return False
    try:
        public_key = _point(chain.public_key)
    except ValueError as error:
        raise BeaconError(f"the public key of chain {chain.hash} is no point of its group: {error}.") from error
    try:
        signed = _point(signature)
    except ValueError:
        return False
    if chain.scheme == UNCHAINED:
        hashed = hashing.hash_to_G1(message, _DST[UNCHAINED], hashlib.sha256)
        pairs = ((curve.G2, signed), (public_key, curve.neg(hashed)))
    else:
        hashed = hashing.hash_to_G2(message, _DST[CHAINED], hashlib.sha256)
        pairs = ((signed, curve.G1), (hashed, curve.neg(public_key)))
    product = curve.FQ12.one()
    for in_g2, in_g1 in pairs:
        product *= curve.pairing(in_g2, in_g1, final_exponentiate=False)
    return bool(curve.final_exponentiate(product) == curve.FQ12.one())
