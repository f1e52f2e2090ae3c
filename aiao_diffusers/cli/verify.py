"""`aiao verify`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, OutputExistsError
from ..files.atomic import write_text
from ._options import AsJson, Quiet
from ._output import out
from ._progress import progress


if TYPE_CHECKING:
    from ..mark.key import WatermarkKey
    from ..protocol.leaves import Leaf as LeafOfKey
    from ..protocol.signer import Signer
    from ..verification.plan import ReadingPlan
    from ..verification.report import VerificationReport

EXIT_CODE = {"verified": 0, "not_verified": 3, "not_testable": 4}

Record = Annotated[str | None, typer.Option(help="Folder with the watermark record, if not beside the suspect.")]
Controls = Annotated[
    list[str] | None,
    typer.Option("--control", "--clean-base", help="An unmarked model that is asked the same; may be repeated."),
]
All = Annotated[
    bool, typer.Option("--all", help="Read each other file too that somebody would load, as a suspect of its own.")
]
AllTrials = Annotated[bool, typer.Option(help="Run all plain trials, for the verification rate.")]
Html = Annotated[Path | None, typer.Option(help="Write the report with plots to this new HTML file.")]
CleanTwin = Annotated[
    str | None,
    typer.Option(
        "--clean-twin",
        "--twin",
        help="Your unmarked original: read what the suspect answers beyond it; brings merges back.",
    ),
]
Reference = Annotated[
    str | None, typer.Option(help="For disguised suspects: the private file from embedding, or the clean twin.")
]
Leaf = Annotated[Path | None, typer.Option(help="One leaf of a key (from `aiao disclose`), in place of --key.")]
Published = Annotated[str | None, typer.Option(help="Day on which the suspect was first public, such as 2026-11-30.")]
Commitments = Annotated[int, typer.Option(help="How many commitments the owner has published; p is multiplied by it.")]
Authority = Annotated[
    list[Path] | None,
    typer.Option(help="PEM file of a timestamp authority's root that you trust; default: certifi's."),
]
Probes = Annotated[
    Path | None,
    typer.Option(help="Read with these inputs of your own (from `aiao probe`), not with the record's."),
]
Attest = Annotated[
    Path | None, typer.Option(help="Sign the report with this signer's key (`aiao keygen --signer`); needs -o.")
]
Evidence = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="New evidence folder for the signed report, which `aiao check` reads."),
]
Fast = Annotated[bool, typer.Option(help="End a hopeless reading after four trials, as `aiao scan` does.")]


def verify(
    suspect: Annotated[str, typer.Argument(help="Folder, .safetensors file or repository id.")],
    key: Annotated[Path | None, typer.Option(help="Key file.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Model that a LoRA is used with; without one its file alone is read.")
    ] = None,
    record: Record = None,
    control: Controls = None,
    weight_name: Annotated[str | None, typer.Option(help="Which file of a folder or repository.")] = None,
    all_candidates: All = False,
    revision: Annotated[str | None, typer.Option(help="Revision of the repository.")] = None,
    alpha: Annotated[float, typer.Option(help="Significance.")] = 1e-6,
    trials: Annotated[int, typer.Option(help="Monte Carlo trials a look, at most.")] = 8,
    all_trials: AllTrials = False,
    seed: Annotated[int, typer.Option(help="Seed of the trials.")] = 0,
    html: Html = None,
    clean_twin: CleanTwin = None,
    reference: Reference = None,
    probes: Probes = None,
    fast: Fast = False,
    leaf: Leaf = None,
    published: Published = None,
    commitments: Commitments = 1,
    authority: Authority = None,
    healing: Annotated[bool, typer.Option(help="At last, fine-tune a copy for a moment and look again.")] = False,
    attest: Attest = None,
    output: Evidence = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Read a mark."""
    _check_words(key, leaf, html)
    signer = _open_signer(attest, output)
    fields = {"alpha": alpha, "trials": trials, "seed": seed, "early_stop": not all_trials, "commitments": commitments}
    plan = _plan(fast, fields)
    with progress(f"reading {suspect}", len(plan.looks), quiet=quiet or as_json) as step:
        from ..verification.verify import verify as run

        report = run(
            suspect,
            load_key(key, leaf),
            base,
            record,
            clean_twin=clean_twin,
            plan=plan,
            controls=control,
            weight_name=weight_name,
            all_candidates=all_candidates,
            revision=revision,
            reference=reference,
            probes=probes,
            healing=healing,
            published=published,
            authorities=authority or None,
            callback=lambda taken, planned: step(taken),
        )
    _show(report, html, as_json)
    if signer is not None:
        _attest(report, suspect, (record, base), signer, output, (weight_name, revision))
    raise typer.Exit(EXIT_CODE[report.verdict])


def _plan(fast: bool, fields: dict[str, Any]) -> "ReadingPlan":
    from ..verification.plan import ReadingPlan

    return ReadingPlan.fast(**fields) if fast else ReadingPlan.thorough(**fields)


def _open_signer(attest: Path | None, output: Path | None) -> "Signer | None":
    """The signer's key, before the reading: can it sign, and is the folder free?"""
    if (attest is None) != (output is None):
        raise ConfigError("--attest SIGNER.KEY signs a report and -o FOLDER is where it goes: pass both, or neither.")
    if attest is None or output is None:
        return None
    from ..protocol.signer import Signer
    from ..verification.evidence_folder import check_new

    check_new(output)
    return Signer.load(attest)


def _attest(
    report: "VerificationReport",
    suspect: str,
    beside: tuple[str | None, str | None],
    signer: "Signer",
    output: Path | None,
    which: tuple[str | None, str | None],
) -> None:
    """Write the evidence folder; the record is that of --record, else of the base, else the suspect's own."""
    from ..verification.evidence_folder import find_record_read, write_evidence

    weight_name, revision = which
    record = find_record_read(report, *(source for source in (*beside, suspect) if source is not None))
    write_evidence(report, suspect, record, signer, str(output), weight_name=weight_name, revision=revision)
    out.note(f"wrote {output}: hand it to a judge with the key's id {signer.public.keyid}")


def _show(report: "VerificationReport", html: Path | None, as_json: bool) -> None:
    if html is not None:
        write_text(html, report.to_html())
    if as_json:
        out.json(report.to_dict())
    else:
        out.text(report.to_markdown())


def load_key(key: Path | None, leaf: Path | None) -> "WatermarkKey | LeafOfKey":
    """The key of --key, or the leaf of --leaf."""
    from ..mark.key import WatermarkKey
    from ..protocol.leaves import Leaf as LeafOfKey

    return WatermarkKey.load(key) if key is not None else LeafOfKey.load(str(leaf))


def _check_words(key: Path | None, leaf: Path | None, html: Path | None) -> None:
    """Before the reading, which may take minutes: is there one key, and can the page be written and drawn?"""
    from ..files.figure import new_figure

    if (key is None) == (leaf is None):
        raise ConfigError("a mark is read with --key FILE, or with --leaf FILE of it.")
    if html is None:
        return
    if html.exists():
        raise OutputExistsError(f"output '{html}' exists: choose another name or remove it.")
    new_figure(1, 1)
