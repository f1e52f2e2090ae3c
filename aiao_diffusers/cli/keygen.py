"""`aiao keygen`."""

from pathlib import Path
from typing import Annotated

import typer

from ._options import AsJson
from ._output import out


def keygen(
    owner: Annotated[str, typer.Option(help="Who will claim the marked models.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Key file to write; never overwritten.")],
    as_json: AsJson = False,
) -> None:
    """Make a key. `aiao commit` then binds a mark to it, before the model is marked and published."""
    from ..mark.key import WatermarkKey

    key = WatermarkKey.generate(owner)
    key.save(output)
    if as_json:
        out.json({"owner": key.owner, "path": str(output), "commitment": key.commitment})
    else:
        out.text(f"wrote {output} (keep it secret)\ncommitment {key.commitment}")
