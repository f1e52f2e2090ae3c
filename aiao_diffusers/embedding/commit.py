"""Commit to a mark before it is embedded, and hold embedding to what was committed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..denoiser.encode import prepare
from ..denoiser.hashes import weights_sha256
from ..errors import CommitmentError, ConfigError
from ..mark.committed import LINEAGE, leaf_hashes, merkle_root
from ..mark.key import BOUND_SCHEME, WatermarkKey
from ..mark.record import WatermarkRecord, bank_sha256
from ..protocol.commitment import Commitment
from ..verification.reference import Reference
from .borrow import borrow
from .config import SITES, EmbedConfig
from .lineage_change import planned_field
from .public_record import choose_bank, public_fields
from .subject import CleanTwin, Subject, observe_clean_twin
from .validation import find_trainable, trace_sites


CHOSEN = ("in_sites", "out_sites", "kappa", "pairs", "response")
"""Fields of `EmbedConfig` that a commitment fixes."""


class Committed(NamedTuple):
    """A new commitment, and the alignment reference that it names: private, as the key."""

    commitment: Commitment
    reference: Reference


def commit(
    model: Any,
    key: WatermarkKey,
    data: Any = None,
    config: EmbedConfig | None = None,
    *,
    scheduler: Any = None,
    earlier: WatermarkRecord | None = None,
    pipeline_options: Mapping[str, Any] | None = None,
) -> Committed:
    """Fix, before embedding, everything that a later reading uses. The model is not changed.

    Publish the commitment's document, have it dated (`protocol.timestamp`), draw the beacon (`protocol.beacon`), then
    `embed(..., commitment=...)`.

    Args:
        model: the pipeline to be marked, or its denoiser together with `scheduler`.
        key (`WatermarkKey`): whose mark it will be.
        data: as for `embed`; the probe bank and the reference are made of it.
        config (`EmbedConfig`, *optional*): numbers of sites, kappa, pairs, response, loudest, lineage, bank_size and seed are used.
        scheduler: the noise schedule; default: the pipeline's.
        earlier (`WatermarkRecord`, *optional*): of a further mark, the first one's; its gains are taken over.
        pipeline_options (`Mapping[str, Any]`, *optional*): as for `embed`.
    Returns:
        `Committed`: the commitment, and the private reference.
    Raises:
        DataError, SiteError, ConfigError: the model, the data or the configuration do not fit.
    Source: our choice (`mark.committed`).
    """
    config, earlier = config or EmbedConfig(), earlier or getattr(model, "record", None)
    denoiser, scheduler = find_trainable(model, scheduler, allow_marked=earlier is not None)
    latents = prepare(model, data, max_unreadable=config.max_unreadable, options=pipeline_options)
    subject = Subject(denoiser, scheduler, latents, trace_sites(denoiser, latents), config)
    with borrow(denoiser, config.seed):
        clean_twin = observe_clean_twin(subject, earlier)
    bank, layout = choose_bank(subject), list(subject.sites)
    fields = {
        **public_fields(subject, key.owner, clean_twin),
        "scheme": BOUND_SCHEME,
        "key_sha256": key.fingerprint,
        "leaves_sha256": merkle_root(leaf_hashes(key, layout, pairs=config.pairs)).hex(),
        "probe_sha256": bank_sha256(bank),
        LINEAGE: planned_field(subject),
    }
    assert clean_twin.reference is not None  # observed above
    return Committed(Commitment(fields, bank), clean_twin.reference)


def open_commitment(source: Any, key: WatermarkKey) -> tuple[Commitment, WatermarkKey]:
    """The commitment given to `embed`, and the key under its beacon.

    Args:
        source: a `Commitment` or its file.
    Raises:
        CommitmentError, KeyMismatchError: as `Commitment.load` and `Commitment.drawn`; the leaves are not the key's.
    """
    commitment = Commitment.load(source) if isinstance(source, str | Path) else source
    if not isinstance(commitment, Commitment):
        raise ConfigError(f"commitment is a Commitment or its file, got {type(source).__name__}: run `aiao commit`.")
    drawn = commitment.drawn(key)
    fields = commitment.fields
    root = merkle_root(leaf_hashes(key, list(fields["layout"]), pairs=fields["pairs"])).hex()
    if root != fields["leaves_sha256"]:
        raise CommitmentError("the commitment's root over the leaves is not that of the key: commit anew.")
    return commitment, drawn


def committed_fields(commitment: Commitment) -> dict[str, Any]:
    """The fields of `EmbedConfig` that a commitment fixes."""
    named = commitment.fields.get(LINEAGE)
    # One that names no carrier is of a model without a site for it, or older than carriers.
    carrier = {"lineage": 0.0, "lineage_only": False}
    if named is not None:
        carrier = {"lineage": named["strength"], "lineage_only": named["only"]}
    return {name: commitment.fields[name] for name in CHOSEN} | carrier


def committed_config(commitment: Commitment, config: EmbedConfig | None) -> EmbedConfig:
    """The configuration given, or the default one with what was committed.

    Raises:
        ConfigError: one given that differs from the commitment.
    """
    fixed = committed_fields(commitment)
    if config is None:
        return EmbedConfig(**fixed)
    if commitment.fields.get(LINEAGE) is None and config.lineage == EmbedConfig.lineage:
        config = replace(config, lineage=0.0)
    config = replace(config, **{name: fixed[name] for name in SITES if getattr(config, name) is None})
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"{name}={getattr(config, name)!r} (--{name.replace('_', '-')}) differs from the {value!r} of the commitment, which was "
                "dated: pass that, or leave it out."
            )
    return config


def expect_clean_twin(subject: Subject, commitment: Commitment) -> CleanTwin:
    """What the commitment says of the clean twin, after a look at this denoiser.

    Raises:
        CommitmentError: the denoiser is another one, or its noise schedule is.
    """
    fields, sha256 = commitment.fields, weights_sha256(subject.denoiser)
    if fields["teacher_sha256"] != sha256:
        raise CommitmentError(
            f"the commitment is of a model with SHA-256 {fields['teacher_sha256']}, this one has {sha256}: embed into that model."
        )
    gains = {site.name: gain for site, gain in zip(fields["layout"], fields["loudness"], strict=True)}
    twin = CleanTwin(sha256, None, gains)
    found = public_fields(subject, fields["owner"], twin)
    differing = [name for name in ("denoiser", "scheduler", "layout") if found[name] != fields[name]]
    if differing:
        raise CommitmentError(
            f"{differing[0]} of this model is not what was committed to: embed into the model as committed."
        )
    return twin
