"""Disclosure in parts: show a judge one leaf of a key, read it, and keep the others secret.

A leaf is one in-site with its share of the out-sites: the mask of the one and the patterns of the others. With masks for pairs it is
one pair. Their secrets hang under a Merkle root in the commitment, so a leaf cannot be made up afterwards. Whoever holds a leaf
can train it away; so each is opened once, and the randomness of the dispute says which (`leaf_by_beacon`).

The judge cannot see whether the key really chose the sites shown, so p is multiplied by the number of leaves that could have
been shown (`LeafKey.choices`).

Source: our choice.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..denoiser.sites import Site
from ..errors import AIAOError, ConfigError, LeafError, OutputExistsError
from ..files.atomic import write_private_new
from ..files.strict_json import read_json
from ..files.text import short
from ..mark.committed import leaf_hash, leaf_hashes, leaf_labels, merkle_path, root_of_path
from ..mark.key import BOUND_SCHEME, SECRET_BYTES, WatermarkKey, response_label, trigger_label
from ..mark.record import WatermarkRecord, is_hex
from ..mark.selection import IN_SPAN, OUT_SPAN, choose, span


VERSION = 1
LEAST_OUT_SITES = 2
_FIELDS = ("version", "scheme", "commitment", "owner", "in_site", "out_sites", "secrets")


@dataclass(frozen=True)
class Leaf:
    """One part of a key, as it is shown to a judge.

    Args:
        commitment (`str`), owner (`str`): whose, 64 hex digits and a name.
        in_site (`str`), out_sites (`tuple[str, ...]`): names of its sites.
        secrets (`Mapping[str, bytes]`): by label, 32 bytes each: of the mask and of the patterns.
        paths (`Mapping[str, tuple[bytes, ...]]`): by label, the hashes that lead from it to the commitment's root.
    Raises:
        LeafError: a field of another kind.
    """

    commitment: str
    owner: str
    in_site: str
    out_sites: tuple[str, ...]
    secrets: Mapping[str, bytes] = field(repr=False)
    paths: Mapping[str, tuple[bytes, ...]] = field(repr=False)

    def __post_init__(self) -> None:
        names = (self.commitment, self.owner, self.in_site, *self.out_sites)
        if not all(isinstance(name, str) for name in names) or not is_hex(self.commitment, 64) or not self.out_sites:
            raise LeafError(f"commitment, owner and sites of a leaf are texts, got {short(names)}: restore the file.")
        if len(set(self.out_sites)) != len(self.out_sites):
            raise LeafError(f"the leaf names an out-site twice ({short(self.out_sites)}), which would count twice.")
        sizes = {len(value) for values in (self.secrets.values(), *self.paths.values()) for value in values}
        if sizes != {SECRET_BYTES} or set(self.secrets) != set(self.paths):
            raise LeafError(f"a leaf has secrets of {SECRET_BYTES} bytes, each with its path: ask for it again.")

    def save_new(self, path: str | Path) -> Path:
        """Write a JSON file readable by its owner alone.

        Raises:
            OutputExistsError: `path` exists.
        """
        values = (
            *(VERSION, BOUND_SCHEME, self.commitment, self.owner, self.in_site, list(self.out_sites)),
            {
                label: {"secret": secret.hex(), "path": [step.hex() for step in self.paths[label]]}
                for label, secret in self.secrets.items()
            },
        )
        try:
            write_private_new(Path(path), json.dumps(dict(zip(_FIELDS, values, strict=True)), indent=2) + "\n")
        except FileExistsError as error:
            raise OutputExistsError(f"output '{path}' exists: choose another name or remove it.") from error
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Leaf":
        """Read what `save_new` wrote.

        Raises:
            LeafError: missing, cut, of another version, or with unknown fields.
        """
        try:
            document = read_json(Path(path))
        except AIAOError as error:
            raise LeafError(f"'{path}' is no leaf: {error}") from error
        if set(document) != set(_FIELDS) or document["version"] != VERSION or document["scheme"] != BOUND_SCHEME:
            raise LeafError(
                f"'{path}' is no leaf of version {VERSION} and scheme {BOUND_SCHEME}: make it with `aiao disclose`."
            )
        try:
            held = document["secrets"].items()
            secrets = {label: bytes.fromhex(fields["secret"]) for label, fields in held}
            paths = {label: tuple(bytes.fromhex(step) for step in fields["path"]) for label, fields in held}
            commitment, owner, in_site = (document[name] for name in ("commitment", "owner", "in_site"))
            return cls(commitment, owner, in_site, tuple(document["out_sites"]), secrets, paths)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, LeafError):
                raise
            raise LeafError(f"'{path}' is altered or cut ({short(str(error))}): ask for it again.") from error


@dataclass(frozen=True)
class LeafKey(WatermarkKey):
    """A key that holds one leaf alone: `verify` reads with it as with a whole key.

    Args:
        secret, owner, beacon: as of a key; the secret is a hash of the leaf's, for controls are derived from it.
        leaf (`Leaf`): what it holds. named (`str`): fingerprint of the whole key. choices (`int`): how many leaves could have been
            shown, which p is multiplied by.
    """

    leaf: Leaf = field(kw_only=True)
    named: str = field(kw_only=True)
    choices: int = field(kw_only=True)

    @property
    def fingerprint(self) -> str:
        """Of the whole key."""
        return self.named

    def leaf_secret(self, label: str) -> bytes:
        """The secret of one of its labels.

        Raises:
            LeafError: it holds no such label.
        """
        if label not in self.leaf.secrets:
            raise LeafError(f"the leaf holds no {label!r}: it opens {self.leaf.in_site!r} and its out-sites alone.")
        return self.leaf.secrets[label]

    def sites(self, layout: list[Site]) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
        """Its in-site and out-sites, in order of execution."""
        ins = tuple(site for site in layout if site.name == self.leaf.in_site)
        return ins, tuple(site for site in layout if site.name in self.leaf.out_sites)


def split_key(key: WatermarkKey, record: WatermarkRecord) -> list[tuple[str, tuple[str, ...]]]:
    """In-site and out-sites of each leaf, in order of execution; no out-site is in two leaves, but with masks for pairs.

    A leaf has two out-sites or more, for one alone seldom reads at 1e-6; so a key may have fewer leaves than in-sites.

    Args:
        key (`WatermarkKey`): the whole one. record (`WatermarkRecord`): of scheme `aiao-2`.
    Raises:
        LeafError: the record is of scheme `aiao-1`, which has no leaves, or of another key.
    """
    _require_bound(record)
    if not record.belongs_to(key):
        raise LeafError(f"the record commits to another key than {key.owner!r}'s: pass the key that it was made with.")
    layout, counts = list(record.layout or ()), (record.in_sites, record.out_sites)
    ins, outs = ([site.name for site in part] for part in choose(layout, record.drawn(key), *counts, record.silent))
    if record.pairs:
        return [(a, (b,)) for a in ins for b in outs]
    count = min(len(ins), max(1, len(outs) // LEAST_OUT_SITES))
    return [(a, tuple(outs[number::count])) for number, a in enumerate(ins[:count])]


def disclose(key: WatermarkKey, record: WatermarkRecord, number: int) -> Leaf:
    """The leaf of this number, from 1.

    Raises:
        ConfigError: there is no such leaf. LeafError: as `split_key`.
    """
    parts = split_key(key, record)
    if not 1 <= number <= len(parts):
        raise ConfigError(f"this key has leaves 1 to {len(parts)}, got {number}.")
    in_site, out_sites = parts[number - 1]
    layout = list(record.layout or ())
    order, hashes = leaf_labels(layout, pairs=record.pairs), leaf_hashes(key, layout, pairs=record.pairs)
    labels = _labels(in_site, out_sites, pairs=record.pairs)
    secrets = {label: key.leaf_secret(label) for label in labels}
    paths = {label: tuple(merkle_path(hashes, order.index(label))) for label in labels}
    return Leaf(record.commitment, key.owner, in_site, out_sites, secrets, paths)


def leaf_by_beacon(randomness: bytes, record: WatermarkRecord, count: int) -> int:
    """The number of the leaf, from 1 to `count`, that a dispute's randomness picks: nobody chooses which one is burnt.

    Args:
        randomness (`bytes`): of a beacon drawn after the dispute began. count (`int`): of `split_key`.
    """
    digest = hashlib.sha256(b"aiao-2 dispute\0" + bytes.fromhex(record.commitment) + randomness).digest()
    return 1 + int.from_bytes(digest, "big") % count


def open_leaf(leaf: Leaf, record: WatermarkRecord) -> LeafKey:
    """The key that a leaf is, once its secrets were found under the record's root.

    Raises:
        LeafError: of another commitment, with labels that are not its sites', or a secret that is not under the root.
    """
    _require_bound(record)
    if leaf.commitment != record.commitment:
        raise LeafError(
            f"the leaf is of commitment {leaf.commitment}, the record of {record.commitment}: pass the record that the owner published."
        )
    layout = list(record.layout or ())
    order, wanted = leaf_labels(layout, pairs=record.pairs), _labels(leaf.in_site, leaf.out_sites, pairs=record.pairs)
    if set(leaf.secrets) != set(wanted) or not set(wanted) <= set(order):
        raise LeafError(
            f"the leaf's labels are not those of {short(leaf.in_site)} and its out-sites in this record's layout."
        )
    for label in wanted:
        place = order.index(label)
        found = root_of_path(leaf_hash(label, leaf.secrets[label]), place, len(order), leaf.paths[label])
        if found is None or found.hex() != record.leaves_sha256:
            raise LeafError(
                f"{label!r} is not under the root of the record's commitment: the leaf was altered or made up."
            )
    secret = hashlib.shake_256(b"".join(leaf.secrets[label] for label in wanted)).digest(SECRET_BYTES)
    beacon = bytes.fromhex(record.beacon or "")
    choices = count_choices(layout, len(leaf.out_sites), pairs=record.pairs)
    return LeafKey(secret, leaf.owner, beacon, leaf=leaf, named=record.key_sha256 or "", choices=choices)


def count_choices(layout: list[Site], outs: int, *, pairs: bool) -> int:
    """How many leaves with so many out-sites could have been shown: p is multiplied by it."""
    ins, candidates = len(span(layout, IN_SPAN)), len(span(layout, OUT_SPAN))
    return ins * (candidates if pairs else math.comb(candidates, outs))


def _labels(in_site: str, out_sites: tuple[str, ...], *, pairs: bool) -> list[str]:
    mask = trigger_label(in_site, out_sites[0]) if pairs else trigger_label(in_site)
    return [mask, *(response_label(name) for name in out_sites)]


def _require_bound(record: WatermarkRecord) -> None:
    if record.scheme != BOUND_SCHEME:
        raise LeafError(
            f"the record is of scheme {record.scheme}, which has no leaves: show the whole key, or embed with a commitment."
        )
