"""`aiao commit`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ._options import (
    AsJson,
    InSites,
    Lineage,
    LineageOnly,
    OutSites,
    PipelineOptions,
    Quiet,
    parse_pipeline_options,
    refuse_with_lineage_only,
    typed,
)
from ._output import out
from ._progress import progress


if TYPE_CHECKING:
    from ..protocol.commitment import Commitment

Existing = Annotated[Path | None, typer.Argument(help="A commitment to date, or to draw the beacon of.")]
RecordOf = Annotated[str | None, typer.Option(help="Pipeline folder or repository id that will be marked.")]
Tsa = Annotated[str | None, typer.Option(help="Address of an RFC 3161 timestamp authority to date it with.")]
Token = Annotated[Path | None, typer.Option(help="An answer that a timestamp authority gave for it.")]
Authority = Annotated[list[Path] | None, typer.Option(help="PEM file of a root that you trust; default: certifi's.")]
Place = Annotated[
    list[str] | None, typer.Option(help="A further dated place of it, such as the address of a Hub commit.")
]
Drand = Annotated[
    str | None,
    typer.Option("--beacon", help="Draw the beacon: `drand`, a relay's address, or a file with its answer."),
]
ByHand = Annotated[str | None, typer.Option(help="Draw the beacon from a text instead; reports say so.")]
Push = Annotated[str | None, typer.Option(help="Publish it in this repository, whose history dates it too.")]
OWN_RECIPE = ("in_sites", "out_sites", "pairs", "lineage", "lineage_only", "seed", "data", "pipeline_option")


def commit(
    context: typer.Context,
    commitment: Existing = None,
    record_of: RecordOf = None,
    key: Annotated[Path | None, typer.Option(help="Key file.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="New commitment file.")] = None,
    data: Annotated[str | None, typer.Option(help="As for `aiao embed`; the probe bank is made of it.")] = None,
    in_sites: InSites = None,
    out_sites: OutSites = None,
    pairs: Annotated[bool, typer.Option(help="A mask for each pair of sites.")] = False,
    lineage: Lineage = 0.25,
    lineage_only: LineageOnly = False,
    pipeline_option: PipelineOptions = None,
    seed: Annotated[int, typer.Option(help="Seed of probe bank and gains.")] = 0,
    tsa: Tsa = None,
    token: Token = None,
    authority: Authority = None,
    place: Place = None,
    beacon: Drand = None,
    by_hand: ByHand = None,
    push: Push = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Commit to a mark before embedding it, date the commitment, and draw the beacon that its masks follow from."""
    if (commitment is None) == (record_of is None):
        raise ConfigError("give either a commitment file, or --record-of MODEL with --key and -o to make one.")
    if sum(one is not None for one in (tsa, token)) > 1 or sum(one is not None for one in (beacon, by_hand)) > 1:
        raise ConfigError(
            "one of --tsa and --token dates a commitment, one of --beacon and --by-hand draws its beacon."
        )
    if authority and (tsa, token, beacon) == (None, None, None):
        raise ConfigError("--authority checks a timestamp: it goes with --tsa, --token or --beacon.")
    if record_of is not None:
        if key is None or output is None:
            raise ConfigError("a new commitment needs --key and -o/--output.")
        if beacon is not None or by_hand is not None:
            raise ConfigError(
                "draw the beacon after the date: `aiao commit COMMITMENT --beacon drand`, an hour later."
            )
        if lineage_only:
            refuse_with_lineage_only(typed(context))
        recipe: dict[str, Any] = {"in_sites": in_sites, "out_sites": out_sites, "pairs": pairs, "seed": seed}
        recipe |= {"lineage": lineage, "lineage_only": lineage_only}
        with progress(f"committing to {record_of}", quiet=quiet or as_json):
            made = _make(record_of, key, output, data, recipe, pipeline_option)
        path = output
    else:
        assert commitment is not None  # by the test above
        _refuse_recipe(context, key, output)
        from ..protocol.commitment import Commitment

        path, made = commitment, Commitment.load(commitment)
    made = _date(made, tsa, token, authority or None, place or ())
    made = _draw(made, beacon, by_hand, authority or None)
    made.save_companions(path)
    if push is not None:
        with progress(f"publishing {path} to {push}", quiet=quiet or as_json):
            place = [_publish(path, push)]
    _tell(path, made, place, as_json)


def _publish(path: Path, repository: str) -> str:
    """Where the commitment is to be found."""
    from ..publishing.commitment_repository import publish_commitment

    return str(publish_commitment(path, repository).commit_url)


def _make(
    record_of: str, key: Path, output: Path, data: str | None, recipe: dict[str, Any], options: list[str] | None
) -> "Commitment":
    from ..embedding.commit import commit as run
    from ..embedding.config import EmbedConfig
    from ..mark.key import WatermarkKey
    from ..pipeline import open_pipeline
    from ..protocol.commitment import REFERENCE, check_free

    config, secret = EmbedConfig(**recipe), WatermarkKey.load(key)
    check_free(output)
    told = parse_pipeline_options(options or ()) or None
    made, reference = run(open_pipeline(record_of), secret, data, config, pipeline_options=told)
    made.save_new(output)
    reference.save(output.with_suffix(REFERENCE))
    return made


def _refuse_recipe(context: typer.Context, key: Path | None, output: Path | None) -> None:
    """What fixes a new commitment says nothing about one that is there."""
    given = [name for name in typed(context) if name in OWN_RECIPE]
    given += [name for name, value in (("key", key), ("output", output)) if value is not None]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{options} belong to --record-of: a commitment that is there is never changed.")


def _date(made: "Commitment", tsa: str | None, token: Path | None, roots: Any, places: Any) -> "Commitment":
    if tsa is not None or token is not None:
        from ..protocol.timestamp import request_timestamp
        from ..verification.dating import DatingTerms, check_date

        digest = bytes.fromhex(made.sha256)
        answer = request_timestamp(digest, tsa) if tsa is not None else _read(token)
        check_date(answer, digest, DatingTerms.read(None, roots))
        made = made.with_companions(timestamp=answer)
    if places:
        made = made.with_companions(places=(json.dumps(list(places), indent=2) + "\n").encode())
    return made


def _draw(made: "Commitment", beacon: str | None, by_hand: str | None, roots: Any) -> "Commitment":
    if beacon is None and by_hand is None:
        return made
    from ..protocol.beacon import by_hand as take_text
    from ..protocol.draw import draw_beacon
    from ..verification.dating import DatingTerms, check_date

    if by_hand is not None:
        drawn = take_text(by_hand)
    else:
        if made.companions.timestamp is None:
            raise ConfigError("drand's round follows from the commitment's date: date it first (--tsa or --token).")
        stamp = check_date(made.companions.timestamp, bytes.fromhex(made.sha256), DatingTerms.read(None, roots))
        drawn = draw_beacon(stamp.time, str(beacon))
    return made.with_companions(beacon=(json.dumps(drawn.to_dict(), indent=2) + "\n").encode())


def _read(path: Path | None) -> bytes:
    try:
        return Path(str(path)).read_bytes()
    except OSError as error:
        raise ConfigError(f"--token '{path}' cannot be read: pass the authority's answer (.tsr).") from error


def _tell(path: Path, made: "Commitment", places: list[str] | None, as_json: bool) -> None:
    beacon = made.beacon
    if as_json:
        dated, drawn = made.companions.timestamp is not None, None if beacon is None else beacon.to_dict()
        out.json(
            {"path": str(path), "commitment": made.sha256, "dated": dated, "beacon": drawn, "places": places or []}
        )
        return
    out.text(f"{path}: commitment {made.sha256}")
    for place in places or ():
        out.text(f"published at {place}")
    if made.companions.timestamp is None:
        out.text(f"not dated yet: aiao commit {path} --tsa ADDRESS; and publish {path}, where others date it too")
    elif beacon is None:
        out.text(f"dated; an hour after that: aiao commit {path} --beacon drand")
    if beacon is not None:
        out.text(f"beacon drawn ({beacon.source}): aiao embed MODEL --key KEY --commitment {path} -o OUTPUT")
