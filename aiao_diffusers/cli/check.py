"""`aiao check`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ._options import AsJson, Quiet
from ._output import out
from ._progress import progress
from .verify import EXIT_CODE, Authority, CleanTwin, Controls, Leaf, Probes, Published, Reference, load_key


Suspect = Annotated[str | None, typer.Option(help="The suspect, if at hand: its files are compared.")]
Key = Annotated[Path | None, typer.Option(help="Key file: with --suspect, read the verdict anew.")]
SignerFile = Annotated[
    Path | None, typer.Option(help="Public key of the signer whom you trust; default: the folder's own.")
]
Commitments = Annotated[
    int | None, typer.Option(help="How many commitments you know of; default: as in the statement.")
]


def check(
    folder: Annotated[Path, typer.Argument(help="Evidence folder, from `aiao verify --attest`.")],
    suspect: Suspect = None,
    key: Key = None,
    leaf: Leaf = None,
    signer: SignerFile = None,
    published: Published = None,
    commitments: Commitments = None,
    authority: Authority = None,
    base: Annotated[str | None, typer.Option(help="Model that a LoRA is used with.")] = None,
    weight_name: Annotated[str | None, typer.Option(help="Which file of a folder or repository.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the repository.")] = None,
    clean_twin: CleanTwin = None,
    reference: Reference = None,
    probes: Probes = None,
    control: Controls = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check an evidence folder offline; with suspect and key read the verdict anew."""
    if key is not None and leaf is not None:
        raise ConfigError("a mark is read with --key FILE, or with --leaf FILE of it, not with both.")
    with progress(f"checking {folder}", quiet=quiet or as_json):
        from ..verification.check_evidence import check_evidence

        found = check_evidence(
            folder,
            suspect,
            load_key(key, leaf) if key is not None or leaf is not None else None,
            signer=signer,
            published=published,
            commitments=commitments,
            authorities=authority or None,
            base=base,
            weight_name=weight_name,
            revision=revision,
            clean_twin=clean_twin,
            reference=reference,
            probes=probes,
            controls=control or None,
        )
    if as_json:
        out.json(found.to_dict())
    else:
        out.text(found.to_markdown())
    raise typer.Exit(EXIT_CODE[found.verdict])
