"""What a commitment of scheme `aiao-2` fixes, as one canonical JSON document, and its hash.

Everything that a reading uses is in it, so a record cannot be changed after its date: a record names the hash of its own
fields, and whoever loads it computes that again. What is not in it came later: the beacon, and the marked weights' hash.

Source: our choice.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..denoiser.sites import Site
from .carried import lineage_document
from .key import BOUND_SCHEME, WatermarkKey, encode, response_label, trigger_label
from .selection import IN_SPAN, OUT_SPAN, span


COMMITTED = (
    *("scheme", "owner", "key_sha256", "leaves_sha256", "denoiser", "sites", "in_sites", "out_sites", "pairs"),
    *("kappa", "response", "loudness", "layout", "scheduler", "probe_sha256", "teacher_sha256", "reference_sha256"),
)
"""Fields of a record that its commitment covers; `probe_sha256` is the hash of the probe bank's file."""
LINEAGE = "lineage"
"""Covered too, and absent where the mark has no carrier."""
VERSION_FIELD, VERSION = "aiao", 2  # sorts before every other field


@dataclass(frozen=True)
class Companions:
    """Files beside a commitment that show when it was made and how the beacon was drawn, as bytes; `protocol` reads them.

    Args:
        timestamp (`bytes`, *optional*): an RFC 3161 answer over the commitment.
        beacon (`bytes`, *optional*): JSON, which round of which chain the randomness is, with its signature.
        places (`bytes`, *optional*): JSON, further dated places that the owner names.
    """

    timestamp: bytes | None = None
    beacon: bytes | None = None
    places: bytes | None = None


def commitment_document(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The document of these fields (`COMMITTED`): numbers with a fraction as strings, for no two writers print them alike.

    Args:
        fields: of a record; `layout` as sites or lists, `scheduler` as a config.
    """
    document: dict[str, Any] = {name: fields.get(name) for name in COMMITTED}
    for name in ("kappa", "response"):
        document[name] = repr(float(document[name]))
    if document["loudness"] is not None:
        document["loudness"] = [repr(float(gain)) for gain in document["loudness"]]
    document["layout"] = [_site_row(site) for site in document["layout"] or ()]
    document["scheduler"] = json.dumps(document["scheduler"], sort_keys=True)
    if fields.get(LINEAGE) is not None:
        document[LINEAGE] = lineage_document(fields[LINEAGE])
    return {VERSION_FIELD: VERSION, **document}


def canonical(document: Mapping[str, Any]) -> bytes:
    """The bytes that are hashed, dated and published: sorted names, no spaces, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def commitment_sha256(fields: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical document of these fields, 64 hex digits."""
    return hashlib.sha256(canonical(commitment_document(fields))).hexdigest()


def leaf_labels(layout: list[Site], *, pairs: bool) -> list[str]:
    """Labels of all leaves, in the order of the tree: masks of every candidate for an in-site, patterns of every one for an out-site.

    Of every candidate, so that the tree does not tell which ones the key uses.
    """
    ins, outs = span(layout, IN_SPAN), span(layout, OUT_SPAN)
    if pairs:
        masks = [trigger_label(site.name, out.name) for site in ins for out in outs]
    else:
        masks = [trigger_label(site.name) for site in ins]
    return [*masks, *(response_label(site.name) for site in outs)]


def leaf_hash(label: str, secret: bytes) -> bytes:
    """Of one leaf of the tree, 32 bytes."""
    return hashlib.sha256(b"\0" + encode(BOUND_SCHEME.encode(), label.encode(), secret)).digest()


def leaf_hashes(key: WatermarkKey, layout: list[Site], *, pairs: bool) -> list[bytes]:
    """`leaf_hash` of all leaves of `key`, in the order of `leaf_labels`."""
    return [leaf_hash(label, key.leaf_secret(label)) for label in leaf_labels(layout, pairs=pairs)]


def merkle_root(hashes: list[bytes]) -> bytes:
    """The root of the tree over these hashes, as RFC 6962 builds it: the left side holds the largest power of two below their number."""
    if len(hashes) == 1:
        return hashes[0]
    middle = _middle(len(hashes))
    return node_hash(merkle_root(hashes[:middle]), merkle_root(hashes[middle:]))


def merkle_path(hashes: list[bytes], place: int) -> list[bytes]:
    """Hashes of the branches beside the one that leads to the leaf at `place`, from the leaf up."""
    if len(hashes) == 1:
        return []
    middle = _middle(len(hashes))
    if place < middle:
        return [*merkle_path(hashes[:middle], place), merkle_root(hashes[middle:])]
    return [*merkle_path(hashes[middle:], place - middle), merkle_root(hashes[:middle])]


def root_of_path(leaf: bytes, place: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """The root of a tree over `count` leaves with this one at `place`; None where the path has another length."""
    if count == 1:
        return leaf if not path else None
    if not path:
        return None
    middle, (*lower, beside) = _middle(count), path
    if place < middle:
        below = root_of_path(leaf, place, middle, lower)
        return None if below is None else node_hash(below, beside)
    below = root_of_path(leaf, place - middle, count - middle, lower)
    return None if below is None else node_hash(beside, below)


def _middle(count: int) -> int:
    """How many of so many leaves lie on the left: the largest power of two below their number."""
    return 1 << (count - 1).bit_length() - 1


def node_hash(left: bytes, right: bytes) -> bytes:
    """Of an inner node; the first byte keeps nodes and leaves apart."""
    return hashlib.sha256(b"\1" + left + right).digest()


def _site_row(site: Any) -> list[Any]:
    return [site.name, site.width_in, site.width_out] if isinstance(site, Site) else list(site)
