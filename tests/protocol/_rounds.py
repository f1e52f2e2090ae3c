"""Rounds of drand: two that the network published, and servers of our own whose secret is known."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from aiao_diffusers.protocol.drand import _curve


_curve()  # imports py_ecc and takes its recursion limit back, under which deep JSON ends the process

from py_ecc import optimized_bls12_381 as curve  # noqa: E402
from py_ecc.bls.hash_to_curve import hash_to_G1, hash_to_G2  # noqa: E402
from py_ecc.bls.point_compression import compress_G1, compress_G2  # noqa: E402

from aiao_diffusers.protocol.drand import CHAINED, DEFAULT, QUICKNET, UNCHAINED, Chain  # noqa: E402


# As https://api.drand.sh/<chain hash>/public/1000 answers, and as many clients print it in their tests.
PUBLISHED: dict[str, tuple[Chain, dict[str, Any]]] = {
    "quicknet": (
        QUICKNET,
        {
            "round": 1000,
            "randomness": "fe290beca10872ef2fb164d2aa4442de4566183ec51c56ff3cd603d930e54fdd",
            "signature": "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125"
            "e342b73a8dd2bacbe47e4b6b63ed5e39",
        },
    ),
    "default": (
        DEFAULT,
        {
            "round": 1000,
            "randomness": "a40d3e0e7e3c71f28b7da2fd339f47f0bcf10910309f5253d7c323ec8cea3212",
            "signature": "99bf96de133c3d3937293cfca10c8152b18ab2d034ccecf115658db324d2edc00a16a2044cd04a8a38e2a307e5ecff35"
            "11315be8d282079faf24098f283e0ed2c199663b334d2e84c55c032fe469b212c5c2087ebb83a5b25155c3283f5b79ac",
            "previous_signature": "af0d93299a363735fe847f5ea241442c65843dc1bd3a7b79646b3b10072e908bf034d35cd69d378e3341f139"
            "100cd4cd03030399864ef8803a5a4f5e64fccc20bbae36d1ca22a6ddc43d2630c41105e90598fab11e5c7456df3925d4b577b113",
        },
    ),
}
TAG = b"BLS_SIG_BLS12381G%d_XMD:SHA-256_SSWU_RO_NUL_"


@dataclass(frozen=True)
class Servers:
    """A network of one, which can sign any round at once."""

    secret: int = 1234567
    scheme: str = UNCHAINED
    genesis_time: int = 1_700_000_000
    period: int = 10

    @cached_property
    def chain(self) -> Chain:
        if self.scheme == CHAINED:
            public_key = compress_G1(curve.multiply(curve.G1, self.secret)).to_bytes(48, "big")
        else:
            public_key = packed(curve.multiply(curve.G2, self.secret))
        return Chain(public_key, self.genesis_time, self.period, self.scheme, bytes(32), "test")

    def sign(self, message: bytes) -> bytes:
        if self.scheme == CHAINED:
            return packed(curve.multiply(hash_to_G2(message, TAG % 2, hashlib.sha256), self.secret))
        return compress_G1(curve.multiply(hash_to_G1(message, TAG % 1, hashlib.sha256), self.secret)).to_bytes(
            48, "big"
        )

    def round(self, number: int, previous: bytes | None = None) -> dict[str, Any]:
        """What a relay answers for a round."""
        signature = self.sign(self.chain.message(number, previous))
        answer = {"round": number, "randomness": hashlib.sha256(signature).hexdigest(), "signature": signature.hex()}
        return answer if previous is None else {**answer, "previous_signature": previous.hex()}


def packed(point: Any) -> bytes:
    return b"".join(number.to_bytes(48, "big") for number in compress_G2(point))
