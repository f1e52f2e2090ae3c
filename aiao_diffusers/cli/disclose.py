"""`aiao disclose`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ._options import AsJson
from ._output import out


def disclose(
    record: Annotated[str, typer.Argument(help="Folder with the watermark record, of scheme aiao-2.")],
    key: Annotated[Path, typer.Option(help="Key file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="New file for the leaf.")],
    leaf: Annotated[int | None, typer.Option(help="Which leaf, from 1.")] = None,
    beacon: Annotated[
        str | None, typer.Option(help="Let randomness pick it: a beacon file, drawn after the dispute began.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one leaf of a key for a judge, who reads it with `aiao verify --leaf`; the others stay secret."""
    if (leaf is None) == (beacon is None):
        raise ConfigError("say which leaf: --leaf N, or --beacon FILE, which nobody chose.")
    from ..mark.key import WatermarkKey
    from ..protocol.draw import read_beacon
    from ..protocol.leaves import disclose as run
    from ..protocol.leaves import leaf_by_beacon, split_key
    from ..verification.suspect import require_record

    secret, found = WatermarkKey.load(key), require_record(record, None)
    count = len(split_key(secret, found))
    number = leaf if leaf is not None else leaf_by_beacon(read_beacon(Path(str(beacon))).randomness, found, count)
    shown = run(secret, found, number)
    shown.save_new(output)
    if as_json:
        out.json(
            {"path": str(output), "leaf": number, "of": count, "in_site": shown.in_site, "out_sites": shown.out_sites}
        )
    else:
        out.text(
            f"wrote {output}: leaf {number} of {count} ({len(shown.out_sites)} out-sites); whoever has it can train it away"
        )
