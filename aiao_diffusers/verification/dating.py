"""Under which assumption a p-value holds: what binds the record, when it was committed to, and how the beacon was drawn.

`dated` is said where nothing is left to believe: a checked token over the commitment is older than the suspect's first publication,
and masks and patterns follow from the one round of drand that this date calls for. Else the report says *undated*, and why.

Source: our choice; DESIGN, "Protocol".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from ..errors import AIAOError, BeaconError, ConfigError, MissingExtraError, ProtocolError
from ..files.strict_json import parse_json
from ..files.text import short
from ..mark.key import SCHEME
from ..mark.record import COMPANIONS, WatermarkRecord
from ..protocol.beacon import Beacon, check_beacon_follows
from ..protocol.timestamp import Timestamp, check_timestamp


UNBOUND = (
    "Scheme aiao-1 binds no record, so the p-value holds only if key and record were both fixed before any ancestor of the "
    "suspect was public. Nothing here shows that."
)
DATED = (
    "The p-value holds whatever the record says: key and record were committed to on {dated} ({authority}), before the suspect was "
    "first published ({published}), and masks and patterns follow from randomness that nobody chose, drawn on {drawn}."
)
UNDATED = (
    "Undated: the p-value holds if key and record were fixed before the randomness was drawn, and if the owner did not pick this "
    "commitment out of several after seeing the suspect. Not shown here, for {reasons}."
)


@dataclass(frozen=True)
class DatingTerms:
    """What a verifier brings to the question when a mark was committed to.

    Args:
        published (`date`, *optional*): the day on which the suspect was first public, UTC.
        authorities (`Sequence[bytes]`, *optional*): PEM of the roots of trusted timestamp authorities; default: those of `certifi`.
    """

    published: date | None = None
    authorities: Sequence[bytes] | None = None

    @classmethod
    def read(cls, published: Any = None, authorities: Any = None) -> "DatingTerms":
        """From a date, a datetime or an ISO text; and from PEM files or their bytes.

        Raises:
            ConfigError: no date, or a file that cannot be read.
        """
        if isinstance(published, str):
            try:
                published = date.fromisoformat(published)
            except ValueError as error:
                raise ConfigError(f"published is a date such as 2026-11-30, got {short(published)}.") from error
        if isinstance(published, datetime):
            published = published.astimezone(UTC).date()
        if published is not None and not isinstance(published, date):
            raise ConfigError(f"published is a date such as 2026-11-30, got {short(published)}.")
        if authorities is None:
            return cls(published)
        given = [authorities] if isinstance(authorities, bytes | str | Path) else list(authorities)
        return cls(published, [one if isinstance(one, bytes) else _read_root(Path(one)) for one in given])


def date_record(record: WatermarkRecord, terms: DatingTerms, *, commitments: int, trusted: bool) -> dict[str, Any]:
    """What the report says of a record's binding and date.

    Args:
        record (`WatermarkRecord`): with its companions. terms (`DatingTerms`): of the verifier.
        commitments (`int`): how many the owner has published.
        trusted (`bool`): whether the verifier chose the record. Of one found beside the suspect bad proofs are a reason, no error.
    Returns:
        `dict`: `scheme`, `status` (`dated` or `undated`), `assumption` in words, `reasons`, `commitment`, `dated`, `authority`, `beacon`,
            `published`, `commitments`, `places`.
    Raises:
        ProtocolError: a proof that is there does not hold: TimestampError, BeaconError.
    """
    told: dict[str, Any] = {
        "scheme": record.scheme,
        "status": "undated",
        "commitment": record.commitment,
        "published": None if terms.published is None else terms.published.isoformat(),
        "commitments": commitments,
    }
    if record.scheme == SCHEME:
        return {**told, "assumption": UNBOUND, "reasons": ["scheme aiao-1 binds no record"]}
    try:
        stamp, beacon, reasons = _check(record, terms)
    except ProtocolError as error:
        if trusted:
            raise
        stamp, beacon, reasons = None, None, [f"a proof beside the suspect does not hold ({error})"]
    drawn = None if beacon is None else beacon.time
    told |= {
        "status": "undated" if reasons else "dated",
        "reasons": reasons,
        "dated": None if stamp is None else stamp.time.isoformat(),
        "authority": None if stamp is None else stamp.authority,
        "beacon": {
            "randomness": record.beacon,
            "source": None if beacon is None else beacon.source,
            "round": None if beacon is None else beacon.round,
            "drawn": None if drawn is None else drawn.isoformat(),
        },
        "places": _places(record),
    }
    if reasons:
        return {**told, "assumption": UNDATED.format(reasons="; ".join(reasons))}
    assert stamp is not None and drawn is not None  # else there were reasons
    words = {"dated": f"{stamp.time:%Y-%m-%d %H:%M} UTC", "authority": stamp.authority, "published": told["published"]}
    return {**told, "assumption": DATED.format(**words, drawn=f"{drawn:%Y-%m-%d %H:%M} UTC")}


def _check(record: WatermarkRecord, terms: DatingTerms) -> tuple[Timestamp | None, Beacon | None, list[str]]:
    """The checked date, the beacon, and what is missing for `dated`."""
    reasons: list[str] = []
    beacon, token, stamp = _read_beacon(record), record.companions.timestamp, None
    if beacon is None:
        reasons.append("nothing tells where the randomness comes from")
    if token is None:
        reasons.append("no timestamp lies beside the commitment")
    else:
        try:
            stamp = check_date(token, bytes.fromhex(record.commitment), terms)
        except MissingExtraError as error:
            reasons.append(f"the timestamp was not checked ({error})")
    if beacon is not None and beacon.source != "drand":
        reasons.append("the randomness was given by hand, so that its giver may have chosen it")
    elif beacon is not None and stamp is not None:
        try:
            check_beacon_follows(beacon, stamp.time)
        except MissingExtraError as error:
            reasons.append(f"the beacon was not checked ({error})")
    if terms.published is None:
        reasons.append("nobody said when the suspect was first published (published=, --published)")
    elif stamp is not None and stamp.time >= datetime.combine(terms.published, time(), UTC):
        reasons.append(f"the commitment ({stamp.time:%Y-%m-%d}) is no older than the suspect ({terms.published})")
    return stamp, beacon, reasons


def _read_beacon(record: WatermarkRecord) -> Beacon | None:
    content = record.companions.beacon
    if content is None:
        return None
    try:
        beacon = Beacon.from_dict(parse_json(content, COMPANIONS["beacon"]))
    except BeaconError:
        raise
    except AIAOError as error:
        raise BeaconError(f"the record's {COMPANIONS['beacon']} cannot be read: {error}") from error
    if beacon.randomness.hex() != record.beacon:
        raise BeaconError(
            f"{COMPANIONS['beacon']} is of randomness {beacon.randomness.hex()}, the record of {record.beacon}: restore the file."
        )
    return beacon


def check_date(token: bytes, digest: bytes, terms: DatingTerms) -> Timestamp:
    """`check_timestamp` by the authorities that the verifier trusts."""
    if terms.authorities is not None:
        return check_timestamp(token, digest, terms.authorities)
    try:
        import certifi
    except ImportError as error:
        raise MissingExtraError("certifi is not installed: run `pip install 'aiao_diffusers[evidence]'`.") from error
    return check_timestamp(token, digest, [Path(certifi.where()).read_bytes()])


def _read_root(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the authority's certificate '{path}' cannot be read: pass its PEM file.") from error


def _places(record: WatermarkRecord) -> list[str]:
    """Further dated places, as the owner names them; nothing here checks them."""
    try:
        listed = json.loads(record.companions.places or b"[]")
    except (ValueError, RecursionError):
        return []
    return [place[:200] for place in listed if isinstance(place, str)][:16] if isinstance(listed, list) else []
