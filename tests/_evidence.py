"""Evidence on a miniature: its record with a date and a beacon that hold, a report of any verdict, and signers."""

import json
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from _kind import extra
from _tiny import commit_tiny, learner

from aiao_diffusers import VerificationReport, WatermarkRecord
from aiao_diffusers.protocol.beacon import DELAY, from_drand
from aiao_diffusers.protocol.drand import QUICKNET
from aiao_diffusers.protocol.signer import Signer
from aiao_diffusers.verification.dating import DatingTerms, date_record
from aiao_diffusers.verification.plan import ReadingPlan


for module in ("asn1crypto", "cryptography", "py_ecc", "rfc3161_client"):
    extra(module)

from tests.protocol._authority import Authority  # noqa: E402
from tests.protocol._rounds import PUBLISHED  # noqa: E402


SIGNER, OTHER = Signer(bytes(range(32))), Signer(bytes(32))
LATER = "2023-08-25"
DATED = QUICKNET.time_of(1000) - DELAY - timedelta(seconds=1)
"""A date that calls for round 1000 of drand, which is public."""
ROUND = json.dumps(from_drand(PUBLISHED["quicknet"][1]).to_dict()).encode()


@cache
def authority(name: str = "Test Authority") -> Authority:
    years = (DATED - timedelta(days=900), DATED + timedelta(days=900))
    return Authority(name, valid=years, root_valid=years)


@cache
def bound_record() -> WatermarkRecord:
    """Of scheme aiao-2, for `learner`."""
    draft = commit_tiny(None)[1]
    token = authority().token(bytes.fromhex(draft.sha256), DATED)
    return draft.with_companions(timestamp=token, beacon=ROUND, places=b'["here"]').to_record("0" * 64)


@cache
def dating() -> dict[str, Any]:
    """What a report says of `bound_record`; checking a beacon takes a second."""
    terms = DatingTerms.read(LATER, [authority().root_pem])
    return date_record(bound_record(), terms, commitments=1, trusted=True)


def reported(verdict: str = "verified", **changes: Any) -> VerificationReport:
    """A report without any reading."""
    p = {"verified": -9.0, "not_verified": -1.5, "not_testable": None}[verdict]
    record = bound_record()
    fields: dict[str, Any] = {
        "log10_p": p,
        "log10_p_floor": -20.0,
        "bit_accuracy": 0.7,
        "verification_rate": 1.0,
        "verification_rate_ci": (0.5, 1.0),
        "plan": {**ReadingPlan(trials=2).to_dict(), "ended": verdict},
        "hashes": {"suspect": "1" * 64, "record": record.sha256, "commitment": record.commitment},
        "dating": dating(),
        "proves": "descent" if verdict == "verified" else "nothing",
        "seed": 0,
    }
    if verdict == "not_testable":
        fields = {"reason": "it is no denoiser", "plan": ReadingPlan(trials=2).to_dict()}
    return VerificationReport(verdict, "suspect/", 1e-6, **{**fields, **changes})


def save_suspect(folder: Path) -> Path:
    """`learner` as a folder."""
    learner()[0].save_pretrained(folder)
    return folder
