"""Public randomness drawn after a commitment's date, so that a claimant cannot fit the record to it.

A beacon of a commitment dated T is the first drand round later than T + `DELAY`: a claimant who may choose among rounds could
try patterns until one suits. Randomness given by hand is possible and named as such; it proves no order of events.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ..errors import BeaconError, UnsafeFileError
from ..files.strict_json import parse_json
from ..files.text import short
from .drand import CHAINED, EPOCH, KNOWN_CHAINS, QUICKNET, SIGNATURE_BYTES, Chain, signature_holds
from .web import request_bytes


VERSION = 1
DRAND, BY_HAND = "drand", "by_hand"
DELAY = timedelta(hours=1)
"""From a commitment's date to its round. It exceeds any error of an authority's clock by far. Our choice."""
RELAY = "https://api.drand.sh"
MAX_TEXT, MAX_ANSWER = 4096, 2**14
_LABEL = b"aiao-2 beacon by hand\0"
_FIELDS = {
    DRAND: ("version", "source", "round", "randomness", "signature", "previous_signature", "chain"),
    BY_HAND: ("version", "source", "text", "randomness"),
}
_CHAIN_FIELDS = ("hash", "public_key", "genesis_time", "period", "scheme", "group_hash", "name")


@dataclass(frozen=True)
class Beacon:
    """Public randomness and where it comes from; `check_beacon` says whether its signature holds.

    Args:
        randomness (`bytes`): 32 bytes: SHA-256 of the signature, or of the text under a label.
        source (`str`): `drand` or `by_hand`.
        round (`int`, *optional*): of drand, from 1.
        signature (`bytes`, *optional*): of the round, 48 or 96 bytes by the chain's scheme.
        chain (`Chain`, *optional*): the drand chain.
        previous_signature (`bytes`, *optional*): of a chained scheme, which signs it too: 96 bytes, or 32 before round 1.
        text (`str`, *optional*): what was given by hand, 1 to 4,096 characters, kept so that a judge may look it up.
    Raises:
        BeaconError: a field is missing, out of its range or of the other source, or the randomness is not what it must be.
    Source: our choice.
    """

    randomness: bytes
    source: str
    round: int | None = None
    signature: bytes | None = None
    chain: Chain | None = None
    previous_signature: bytes | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if self.source not in (DRAND, BY_HAND):
            raise BeaconError(f"beacon source {short(self.source)} is neither {DRAND!r} nor {BY_HAND!r}.")
        expected = _check_drand(self) if self.source == DRAND else _check_by_hand(self)
        if type(self.randomness) is not bytes or self.randomness != expected:
            origin = "signature" if self.source == DRAND else "text"
            raise BeaconError(
                f"the beacon's randomness {_shown(self.randomness)} is not what its {origin} gives ({expected.hex()}): "
                f"it was altered. Take the beacon anew from its source."
            )

    @property
    def time(self) -> datetime | None:
        """When the round was drawn, UTC; None by hand, for nothing dates such randomness."""
        return None if self.chain is None or self.round is None else self.chain.time_of(self.round)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, version first; bytes as lower-case hex."""
        if self.source == BY_HAND:
            values = [VERSION, self.source, self.text, self.randomness.hex()]
            return dict(zip(_FIELDS[BY_HAND], values, strict=True))
        chain = self.chain
        assert chain is not None and self.signature is not None
        described = {name: getattr(chain, name) for name in _CHAIN_FIELDS}
        described = {name: value.hex() if isinstance(value, bytes) else value for name, value in described.items()}
        previous = None if self.previous_signature is None else self.previous_signature.hex()
        values = [VERSION, self.source, self.round, self.randomness.hex(), self.signature.hex(), previous, described]
        return dict(zip(_FIELDS[DRAND], values, strict=True))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Beacon":
        """The beacon that `to_dict` described; its signature is not checked here.

        Raises:
            BeaconError: another version, a field missing, unknown or malformed, or fields that contradict each other.
        """
        _require_object(document, "a beacon")
        version = document.get("version")
        if type(version) is not int or version != VERSION:
            raise BeaconError(
                f"beacon of version {short(version)}; this release reads version {VERSION}: install its release."
            )
        source = document.get("source")
        if not isinstance(source, str) or source not in _FIELDS:
            raise BeaconError(f"beacon source {short(source)} is neither {DRAND!r} nor {BY_HAND!r}.")
        _require_fields(document, _FIELDS[source], "the beacon")
        randomness = _from_hex(document["randomness"], "randomness")
        if source == BY_HAND:
            return cls(randomness, BY_HAND, text=document["text"])
        previous = document["previous_signature"]
        return cls(
            randomness,
            DRAND,
            round=document["round"],
            signature=_from_hex(document["signature"], "signature"),
            chain=_chain_from_dict(document["chain"]),
            previous_signature=None if previous is None else _from_hex(previous, "previous_signature"),
        )


def _check_drand(beacon: Beacon) -> bytes:
    """Fields of a drand beacon; returns the randomness that its signature gives."""
    if not isinstance(beacon.chain, Chain):
        raise BeaconError(f"a drand beacon needs its chain, not {short(beacon.chain)}.")
    if beacon.text is not None:
        raise BeaconError("a drand beacon has no text; a text is for randomness by hand.")
    beacon.chain.time_of(beacon.round)  # type: ignore[arg-type]  # refuses what is no round
    size = SIGNATURE_BYTES[beacon.chain.scheme]
    if type(beacon.signature) is not bytes or len(beacon.signature) != size:
        raise BeaconError(f"the beacon's signature {_shown(beacon.signature)} is not {size} bytes.")
    before = None
    if beacon.chain.scheme == CHAINED:
        before = 32 if beacon.round == 1 else size
    previous = beacon.previous_signature
    if (None if previous is None else len(previous)) != before or type(previous) not in (bytes, type(None)):
        wanted = "absent" if before is None else f"{before} bytes"
        raise BeaconError(
            f"the beacon's previous_signature {_shown(previous)} must be {wanted} for scheme {beacon.chain.scheme}."
        )
    return hashlib.sha256(beacon.signature).digest()


def _check_by_hand(beacon: Beacon) -> bytes:
    """Fields of a beacon by hand; returns the randomness that its text gives."""
    for name in ("round", "signature", "chain", "previous_signature"):
        if getattr(beacon, name) is not None:
            raise BeaconError(f"randomness by hand has no {name}, but {short(getattr(beacon, name))} was given.")
    return _hash_text(beacon.text)


def _hash_text(text: Any) -> bytes:
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
        raise BeaconError(f"randomness by hand {short(text)} is not a text of 1 to {MAX_TEXT} characters.")
    try:
        return hashlib.sha256(_LABEL + text.encode("utf-8")).digest()
    except UnicodeEncodeError:
        raise BeaconError(f"randomness by hand {short(text)} has characters that UTF-8 cannot hold.") from None


def by_hand(text: str) -> Beacon:
    """A beacon from a text, such as lottery numbers with their date or a block's hash in hex, hashed as it stands.

    Nobody can check that the text was not chosen. A report must say that the order of commitment and beacon is not proven.

    Args:
        text (`str`): 1 to 4,096 characters; spaces and letter case count.
    Raises:
        BeaconError: nothing was given, or too much.
    Source: our choice.
    """
    return Beacon(_hash_text(text), BY_HAND, text=text)


def from_drand(document: Mapping[str, Any] | bytes, *, chain: Chain = QUICKNET) -> Beacon:
    """The beacon in what a drand relay answers for a round; `check_beacon` then checks its signature.

    Args:
        document (`Mapping` or `bytes`): JSON with `round`, `signature` and, where given, `randomness` and
            `previous_signature`; bytes are parsed.
        chain (`Chain`): of which it is a round; default quicknet.
    Raises:
        BeaconError: no JSON of a round, or its fields contradict each other.
    Source: drand's HTTP interface.
    """
    if isinstance(document, bytes):
        if len(document) > MAX_ANSWER:
            raise BeaconError(f"a drand round has at most {MAX_ANSWER} bytes of JSON, this has {len(document)}.")
        try:
            document = parse_json(document, "the drand round")
        except UnsafeFileError as error:
            raise BeaconError(str(error)) from error
    _require_object(document, "a drand round")
    known = ("round", "signature", "randomness", "previous_signature")
    optional = [name for name in known[2:] if name not in document]
    _require_fields(document, [name for name in known if name not in optional], "the drand round")
    signature = _from_hex(document["signature"], "signature")
    given = document.get("randomness")
    randomness = hashlib.sha256(signature).digest() if given is None else _from_hex(given, "randomness")
    # Relays of an unchained scheme write "" or leave the field out.
    previous = document.get("previous_signature") or None
    previous = None if previous is None else _from_hex(previous, "previous_signature")
    return Beacon(randomness, DRAND, document["round"], signature, chain, previous)


def fetch_drand(
    round: int | None = None, url: str = RELAY, *, chain: Chain = QUICKNET, timeout: float = 30.0
) -> Beacon:
    """A round of drand from a relay, checked.

    Args:
        round (`int`, *optional*): default: the latest. `round_after(dated + DELAY, chain)` is the one of a commitment.
        url (`str`): address of a relay; the path of chain and round is added.
        chain (`Chain`): default quicknet.
        timeout (`float`): seconds for the answer.
    Raises:
        BeaconError: the round is not drawn yet, no answer, another round than asked for, or a signature that does not hold.
        ConfigError: no http address. MissingExtraError: py_ecc is not installed.
    Source: drand's HTTP interface.
    """
    if round is not None and (drawn := chain.time_of(round)) > datetime.now(UTC):
        raise BeaconError(f"round {round} of {chain.name!r} is drawn at {_stamp(drawn)}: fetch it after that time.")
    address = f"{url.rstrip('/')}/{chain.hash}/public/{'latest' if round is None else round}"
    headers = {"Accept": "application/json"}
    answer = request_bytes(address, headers=headers, timeout=timeout, limit=MAX_ANSWER, error=BeaconError)
    beacon = from_drand(answer, chain=chain)
    if round is not None and beacon.round != round:
        raise BeaconError(f"{short(url)} answers with round {beacon.round}, asked for {round}: use another relay.")
    check_beacon(beacon, chains=(chain,))
    return beacon


def check_beacon(beacon: Beacon, *, chains: Sequence[Chain] = KNOWN_CHAINS) -> None:
    """Refuse a drand beacon whose chain is not among `chains` or whose signature does not hold.

    Randomness by hand has no signature: what a `Beacon` checks of itself is all there is, and this returns.

    Args:
        beacon (`Beacon`): whose fields already agree with each other.
        chains (`Sequence[Chain]`): trusted ones; default quicknet and the network's older chain.
    Raises:
        BeaconError: chain unknown, or the signature is not that of the round. MissingExtraError: py_ecc is not installed.
    Source: drand's specification; see `signature_holds`.
    """
    if beacon.chain is None or beacon.round is None or beacon.signature is None:
        return
    if beacon.chain not in chains:
        names = ", ".join(f"{chain.name} ({chain.hash})" for chain in chains) or "none"
        raise BeaconError(
            f"the beacon is of drand chain {beacon.chain.hash}, scheme {beacon.chain.scheme}, which is not trusted here; "
            f"trusted: {names}. Fetch the round from one of these."
        )
    message = beacon.chain.message(beacon.round, beacon.previous_signature)
    if not signature_holds(beacon.chain, message, beacon.signature):
        raise BeaconError(
            f"the signature {_shown(beacon.signature)} is not that of round {beacon.round} of {beacon.chain.name!r}: the beacon "
            f"was altered. Fetch the round again."
        )


def round_after(moment: datetime, chain: Chain = QUICKNET) -> int:
    """The first round that is drawn later than a moment.

    Args:
        moment (`datetime`): with a time zone.
        chain (`Chain`): default quicknet.
    Raises:
        BeaconError: the moment has no time zone, or the round lies beyond the year 9999.
    Source: a round is drawn at genesis + (round - 1) period.
    """
    since = _in_utc(moment, "the moment") - EPOCH - timedelta(seconds=chain.genesis_time)
    found = max(1, since // timedelta(seconds=chain.period) + 2)
    chain.time_of(found)
    return found


def check_beacon_follows(beacon: Beacon, dated: datetime, *, chain: Chain = QUICKNET) -> bool:
    """Whether this beacon is the very round that a commitment's date calls for; its signature is checked too.

    The rule leaves one choice: the date. Each further token for the same commitment calls for another round, so a claimant
    counts every token as a commitment, and the earliest is the one that others can hold against the claim.

    Args:
        beacon (`Beacon`): the one in the record.
        dated (`datetime`): the time that the commitment's token states, with a time zone.
        chain (`Chain`): which chain the commitment names; default quicknet. One alone counts, or a claimant could choose.
    Returns:
        `bool`: True where the order is proven. False for randomness by hand, which has no time: it may have been chosen, also
            before the date. A report must then say that nothing proves the order.
    Raises:
        BeaconError: another chain, another round (the right one is named), a signature that does not hold, or no time zone.
        MissingExtraError: py_ecc is not installed.
    Source: our choice.
    """
    dated = _in_utc(dated, "the commitment's date")
    if beacon.source == BY_HAND:
        return False
    if beacon.chain is None or beacon.time is None:
        raise BeaconError("the beacon has no round: fetch one from drand.")
    try:
        right = round_after(dated + DELAY, chain)
    except OverflowError:
        raise BeaconError(f"the commitment's date {_stamp(dated)} leaves no time for a round.") from None
    if beacon.chain == chain and beacon.round != right:
        when = "before" if beacon.time <= dated else "after"
        raise BeaconError(
            f"round {beacon.round} of {chain.name!r} was drawn at {_stamp(beacon.time)}, {when} the commitment's date "
            f"{_stamp(dated)}. The beacon of that date is round {right}, drawn at {_stamp(chain.time_of(right))}, and no other: "
            f"fetch that round."
        )
    check_beacon(beacon, chains=(chain,))
    return True


def _chain_from_dict(document: Any) -> Chain:
    """The chain that a beacon names; its hash must be that of its other fields."""
    _require_object(document, "the beacon's chain")
    _require_fields(document, _CHAIN_FIELDS, "the beacon's chain")
    values = {name: document[name] for name in _CHAIN_FIELDS[1:]}
    for name in ("public_key", "group_hash"):
        values[name] = _from_hex(values[name], name)
    if not isinstance(values["scheme"], str):
        raise BeaconError(f"the chain's scheme {short(values['scheme'])} is not a string.")
    chain = Chain(**values)
    if document["hash"] != chain.hash:
        raise BeaconError(
            f"the chain's hash {short(document['hash'])} is not that of its fields ({chain.hash}): it was altered."
        )
    return chain


def _require_object(document: Any, what: str) -> None:
    if not isinstance(document, Mapping):
        raise BeaconError(f"{what} is a JSON object, not {short(document)}.")


def _require_fields(document: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    missing = [name for name in names if name not in document]
    unknown = [name for name in document if name not in names]
    if missing or unknown:
        found = [
            f"{label} {short(listed[0])}"
            for label, listed in (("lacks", missing), ("has the unknown", unknown))
            if listed
        ]
        raise BeaconError(f"{what} {' and '.join(found)}; its fields are {', '.join(names)}.")


def _from_hex(value: Any, name: str) -> bytes:
    """Bytes from lower-case hex: with one spelling only, equal beacons are equal files."""
    if not isinstance(value, str) or len(value) > 512:
        raise BeaconError(f"{name} {short(value)} is not a short string of hex digits.")
    try:
        found = bytes.fromhex(value)
    except ValueError:
        found = b""
    if not value or found.hex() != value:
        raise BeaconError(f"{name} {short(value)} is not lower-case hex of whole bytes.")
    return found


def _in_utc(moment: datetime, what: str) -> datetime:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise BeaconError(f"{what} {short(moment)} has no time zone: give one, as datetime(..., tzinfo=UTC).")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise BeaconError(f"{what} {short(moment)} is out of range.") from None


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _shown(value: Any) -> str:
    return short(value.hex() if isinstance(value, bytes) else value, 80)
