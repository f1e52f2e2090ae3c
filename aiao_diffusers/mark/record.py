"""The public record of a watermark: what a verifier needs beside the key. It reveals no mask and no site."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import nn

from ..denoiser.inputs import LatentData
from ..denoiser.schedule import NoiseSchedule, noise_schedule
from ..denoiser.sites import Site
from ..errors import ConfigError, DataError, RecordError, SuspectError, UnsafeFileError
from ..files.atomic import write_bytes
from ..files.strict_json import read_json
from ..files.text import short
from .carried import check_carried
from .committed import COMMITTED, LINEAGE, Companions, canonical, commitment_document, commitment_sha256
from .key import BEACON_BYTES, BOUND_SCHEME, SCHEME, SCHEMES, WatermarkKey
from .record_checks import is_gain
from .selection import IN_SPAN, span


FOLDER, DOCUMENT, BANK = "aiao", "watermark.json", "probe.safetensors"
COMMITMENT = "commitment.json"
COMPANIONS = {"timestamp": "commitment.tsr", "beacon": "commitment.beacon.json", "places": "commitment.places.json"}
"""File of each of a record's `Companions`; a record has them in scheme `aiao-2` alone, and may lack any."""
MAX_COMPANION_BYTES = 2**18
MAX_SITES, MAX_WIDTH, MAX_TIMESTEPS, MAX_LOUDNESS = 2**14, 2**16, 10**6, 100
"""Far above any denoiser; a record from the suspect's side must not decide how long its verification takes."""
MIN_AMPLITUDE, MAX_AMPLITUDE = 1e-3, 1e3
"""Of `kappa` and `response`: beyond them nothing answers, or everything does."""


_BAD_SCHEDULE = (ArithmeticError, AttributeError, ConfigError, LookupError, RuntimeError, TypeError, ValueError)
"""What diffusers raises on a scheduler's config that is none."""


@dataclass(frozen=True)
class WatermarkRecord:
    """Scheme version, commitment, amplitudes, number of sites and the probe bank.

    Args:
        owner (`str`): of the key.
        commitment (`str`): of the key; in scheme `aiao-2` the hash of all that a reading uses (`committed`), checked here.
        denoiser (`str`): class name of the marked denoiser.
        sites (`int`): how many it has.
        in_sites (`int`): how many the key selects for triggers.
        out_sites (`int`): how many it selects to answer.
        kappa (`float`): trigger amplitude, in units of the in-site's rms.
        loudness (`tuple[float, ...]`, *optional*): gains, which are factors on it, of the sites of the layout in that order, at
            least 1, or 0 where no key has an in-site; absent: 1 everywhere.
        pairs (`bool`): an in-site has a mask for each out-site, which is asked by that alone; default and absent: one mask for all.
        response (`float`): alpha of the embedding loss, target response in units of the out-site's rms.
        scheduler (`dict`): the noise schedule, as diffusers' config.
        bank (`LatentData`): a few in-distribution latents with conditioning; random ones do not work as probes.
        marked_sha256 (`str`, *optional*): hash of the marked denoiser's weights.
        layout (`tuple[Site, ...]`, *optional*): every site of the marked denoiser in order of execution. Public, for the
            architecture is; it spares verification a forward, and lets it match a suspect with fewer sites by name.
        teacher_sha256 (`str`, *optional*): hash of the clean twin's weights, which stay private; named here, they cannot be
            exchanged later.
        reference_sha256 (`str`, *optional*): the same of the alignment reference made from it (`Reference`).
        key_sha256 (`str`, *optional*), leaves_sha256 (`str`, *optional*), beacon (`str`, *optional*): of scheme `aiao-2` alone:
            the key's fingerprint, the root over its leaf secrets, and the public randomness that masks and patterns expand from.
        lineage (`dict`, *optional*): of a model with a lineage carrier, its `strength` and the denoiser's `architecture` (diffusers'
            config), by which an adapter's file is read without any base (`carried`).
        companions (`Companions`): what dates the commitment and shows the beacon's draw; no part of any hash.
        as_committed (`bool`): False of a copy that a suspect is read with in the record's place (`as_read`).
    Raises:
        RecordError: scheme unknown, a number out of range, or fields that differ from what was committed to.
    """

    owner: str
    commitment: str
    denoiser: str
    sites: int
    in_sites: int
    out_sites: int
    kappa: float
    response: float
    scheduler: dict[str, Any]
    bank: LatentData
    marked_sha256: str | None = None
    layout: tuple[Site, ...] | None = None
    teacher_sha256: str | None = None
    reference_sha256: str | None = None
    loudness: tuple[float, ...] | None = None
    pairs: bool = False
    scheme: str = SCHEME
    key_sha256: str | None = None
    leaves_sha256: str | None = None
    beacon: str | None = None
    lineage: dict[str, Any] | None = None
    companions: Companions = field(default=Companions(), repr=False, compare=False)
    as_committed: bool = field(default=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            readable = " and ".join(SCHEMES)
            raise RecordError(
                f"record of scheme {short(self.scheme)}; this version reads {readable}: install its version."
            )
        for name in ("owner", "commitment", "denoiser"):
            _require(isinstance(getattr(self, name), str), name, getattr(self, name), "a string")
        _require(isinstance(self.pairs, bool), "pairs", self.pairs, "true, false or absent")
        for name in ("marked_sha256", "teacher_sha256", "reference_sha256"):
            _require(isinstance(getattr(self, name), str | None), name, getattr(self, name), "a string or absent")
        for name in ("sites", "in_sites", "out_sites"):
            _require(_is_count(getattr(self, name), MAX_SITES), name, getattr(self, name), f"1 to {MAX_SITES}")
        for name in ("kappa", "response"):
            value = getattr(self, name)
            right = type(value) in (int, float) and MIN_AMPLITUDE <= value <= MAX_AMPLITUDE
            _require(right, name, value, f"{MIN_AMPLITUDE:g} to {MAX_AMPLITUDE:g}")
        for site in self.layout or ():
            widths = site.width_in, site.width_out
            fits = all(_is_count(width, MAX_WIDTH) for width in widths)
            _require(
                isinstance(site.name, str) and fits, f"site {short(site.name)}", widths, f"1 to {MAX_WIDTH} channels"
            )
        if self.layout is not None and len({site.name for site in self.layout}) != self.sites:
            raise RecordError(f"the record lists {len(self.layout)} sites and counts {self.sites}: it was altered.")
        if self.loudness is not None:
            fits = self.layout is not None and len(self.loudness) == len(self.layout)
            right = fits and all(is_gain(x, MAX_LOUDNESS) for x in self.loudness)
            _require(right, "loudness", self.loudness, f"0 or 1 to {MAX_LOUDNESS} for each site of its layout")
            audible = sum(site.name not in self.silent for site in span(list(self.layout or ()), IN_SPAN))
            _require(
                audible >= self.in_sites, "loudness", self.loudness, f"above 0 at {self.in_sites} sites for triggers"
            )
        _require(isinstance(self.scheduler, dict), "scheduler", self.scheduler, "an object")
        steps = self.scheduler.get("num_train_timesteps", 1000)
        _require(_is_count(steps, MAX_TIMESTEPS), "num_train_timesteps", steps, f"1 to {MAX_TIMESTEPS}")
        try:
            known = self.schedule.steps
        except _BAD_SCHEDULE as error:
            raise RecordError(f"the record's noise schedule cannot be built: {short(str(error))}") from error
        latents = self.bank.latents
        _require(latents.is_floating_point(), "probe bank", latents.dtype, "latents of floating point")
        _require(known == steps, "noise schedule", known, f"of as many steps as it has timesteps ({steps})")
        if self.lineage is not None:
            check_carried(self.lineage)
        self._check_commitment()

    def _check_commitment(self) -> None:
        bound = self.scheme == BOUND_SCHEME
        for name, digits in (("key_sha256", 64), ("leaves_sha256", 64), ("beacon", 2 * BEACON_BYTES)):
            text = getattr(self, name)
            right = isinstance(text, str) and is_hex(text, digits) if bound else text is None
            _require(right, name, text, f"{digits} hex digits" if bound else f"absent in scheme {SCHEME}")
        if not bound:
            return
        _require(self.layout is not None, "layout", self.layout, f"there in scheme {BOUND_SCHEME}")
        found = commitment_sha256(self.committed_fields()) if self.as_committed else self.commitment
        if found != self.commitment:
            raise RecordError(
                f"the record commits to {short(self.commitment)}, its fields and probe bank give {found}: one of them was "
                "changed after the commitment."
            )

    def as_read(self, **fields: Any) -> "WatermarkRecord":
        """A copy with other fields, for a reading that takes them from the verifier or the suspect; it is never saved.

        Raises:
            RecordError: a number out of range.
        """
        return dataclasses.replace(self, as_committed=False, **fields)

    def committed_fields(self) -> dict[str, Any]:
        """The fields that a commitment of scheme `aiao-2` covers."""
        values = {name: getattr(self, name, None) for name in (*COMMITTED, LINEAGE)}
        return {**values, "probe_sha256": bank_sha256(self.bank)}

    def belongs_to(self, key: WatermarkKey) -> bool:
        """Whether this record commits to `key`."""
        return self.commitment == key.commitment if self.beacon is None else self.key_sha256 == key.fingerprint

    def drawn(self, key: WatermarkKey) -> WatermarkKey:
        """`key` as this record's scheme expands it: with its beacon, or with none."""
        return key.drawn_with(None if self.beacon is None else bytes.fromhex(self.beacon))

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """`latents` at `timestep` `(B,)` of the record's noise schedule."""
        return self.schedule.add_noise(latents, noise, timestep)

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The record's noise schedule, which every trial asks.

        Raises:
            ConfigError: `noise_schedule`.
        """
        return noise_schedule(self.scheduler)

    @property
    def clean_twin_sha256(self) -> str | None:
        """Hash of the clean twin's weights; the file calls it `teacher_sha256`."""
        return self.teacher_sha256

    @property
    def factors(self) -> dict[str, float]:
        """`loudness` by site."""
        return {site.name: factor for site, factor in zip(self.layout or (), self.loudness or (), strict=False)}

    @property
    def silent(self) -> frozenset[str]:
        """Names of the sites that are no in-sites, whatever the key."""
        return frozenset(name for name, factor in self.factors.items() if not factor)

    @property
    def timesteps(self) -> int:
        """Number of training timesteps of the schedule."""
        return int(self.scheduler.get("num_train_timesteps", 1000))

    def check_fits(self, denoiser: nn.Module) -> None:
        """Raises RecordError when `denoiser` is of another class than the record's, or takes none of its probe bank's arguments."""
        if type(denoiser).__name__ != self.denoiser:
            raise RecordError(f"the record is of a {self.denoiser}, the suspect is a {type(denoiser).__name__}.")
        try:
            self.bank.call.check_fits(denoiser)
        except DataError as error:
            raise RecordError(f"the record's probe bank does not fit: {error}") from error

    def _serialize(self) -> tuple[bytes, bytes]:
        """The document and the bank, as bytes; fields that are None or False are left out, as records before them had none."""
        bank = bank_bytes(self.bank)
        left_out = ("bank", "companions", "as_committed")
        document = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        if self.layout is not None:
            document["layout"] = [[site.name, site.width_in, site.width_out] for site in self.layout]
        probe = {"file": BANK, "sha256": hashlib.sha256(bank).hexdigest()}
        document = {"scheme": document.pop("scheme"), **document, "probe": probe}
        document = {name: value for name, value in document.items() if value is not None and value is not False}
        return (json.dumps(document, indent=2) + "\n").encode(), bank

    @property
    def sha256(self) -> str:
        """Hash of `aiao/watermark.json` as `save` writes it; it names the bank's hash, so it stands for both files."""
        return hashlib.sha256(self._serialize()[0]).hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write `folder/aiao/`: the bank first, then the document that names its hash; each under a temporary name."""
        target = Path(folder) / FOLDER
        target.mkdir(parents=True, exist_ok=True)
        document, bank = self._serialize()
        beside = {name: getattr(self.companions, field) for field, name in COMPANIONS.items()}
        if self.scheme == BOUND_SCHEME:
            beside[COMMITMENT] = canonical(commitment_document(self.committed_fields()))
        for name, content in {**beside, BANK: bank, DOCUMENT: document}.items():
            if content is not None:
                write_bytes(target / name, content)
        return target

    @classmethod
    def load(cls, folder: str | Path) -> "WatermarkRecord":
        """Read the record of a model folder (or of its `aiao` folder).

        Raises:
            RecordError: missing, cut, altered (the bank's hash differs), or of another scheme version.
        """
        folder = Path(folder)
        source = folder if (folder / DOCUMENT).is_file() else folder / FOLDER
        try:
            document = read_json(source / DOCUMENT)
            bank = (source / BANK).read_bytes()
        except (SuspectError, FileNotFoundError) as error:
            raise RecordError(
                f"no watermark record in '{folder}' ({FOLDER}/{DOCUMENT}): pass record=FOLDER."
            ) from error
        except (OSError, UnsafeFileError) as error:
            raise RecordError(f"the record in '{folder}' cannot be read ({error}): restore it.") from error
        if document.get("scheme") not in SCHEMES:
            found, known = short(document.get("scheme")), " and ".join(SCHEMES)
            raise RecordError(f"the record in '{folder}' is of scheme {found}, this version reads {known}.")
        probe, layout = document.pop("probe", None), document.pop("layout", None)
        if not isinstance(probe, dict) or hashlib.sha256(bank).hexdigest() != probe.get("sha256"):
            raise RecordError(f"the probe bank in '{source}' does not match the record's hash: it was altered.")
        try:
            if layout is not None:
                layout = tuple(Site(name, order, *widths) for order, (name, *widths) in enumerate(layout))
            if document.get("loudness") is not None:
                document["loudness"] = tuple(document["loudness"])
            beside = _read_companions(source) if document.get("scheme") == BOUND_SCHEME else Companions()
            return cls(
                **document, layout=layout, bank=LatentData.load(source / BANK), companions=beside, as_committed=True
            )
        except RecordError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise RecordError(f"the record in '{folder}' has missing, unknown or bad fields ({error}).") from error


def bank_bytes(bank: LatentData) -> bytes:
    """A probe bank as its file holds it."""
    tensors = bank.tensors()
    stored = {n: (v.float() if v.is_floating_point() else v).contiguous() for n, v in tensors.items()}
    return to_bytes(stored, bank.metadata())


def bank_sha256(bank: LatentData) -> str:
    """Hash of a probe bank's file."""
    return hashlib.sha256(bank_bytes(bank)).hexdigest()


def is_hex(value: str, digits: int) -> bool:
    """Whether a text is so many lower-case hex digits."""
    return len(value) == digits and set(value) <= set("0123456789abcdef")


def _read_companions(folder: Path) -> Companions:
    found: dict[str, bytes] = {}
    for name, file in COMPANIONS.items():
        path = folder / file
        if not path.is_file():
            continue
        if path.stat().st_size > MAX_COMPANION_BYTES:
            raise RecordError(
                f"'{path}' has {path.stat().st_size} bytes; such a file has at most {MAX_COMPANION_BYTES}."
            )
        found[name] = path.read_bytes()
    return Companions(**found)


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most  # bool is an int in Python


def _require(right: bool, name: str, value: object, wanted: str) -> None:
    if not right:
        raise RecordError(f"the record's {name} is {short(value)}, which must be {wanted}: it was altered or cut.")


def has_record(folder: str | Path) -> bool:
    """Whether a model folder carries a record."""
    return (Path(folder) / FOLDER / DOCUMENT).is_file()
