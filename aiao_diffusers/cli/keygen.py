"""`aiao keygen`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ._options import AsJson
from ._output import out


def keygen(
    output: Annotated[Path, typer.Option("-o", "--output", help="Key file to write; never overwritten.")],
    owner: Annotated[str | None, typer.Option(help="Who will claim the marked models.")] = None,
    signer: Annotated[
        bool,
        typer.Option("--signer", help="Make a key that signs reports instead, and its public half (.pub) beside it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key. `aiao commit` then binds a mark to it, before the model is marked and published."""
    if signer:
        _make_signer(output, owner, as_json)
        return
    if owner is None:
        raise ConfigError(
            "a watermark key names who will claim the models: pass --owner NAME (or --signer, for a key that signs)."
        )
    from ..mark.key import WatermarkKey

    key = WatermarkKey.generate(owner)
    key.save(output)
    if as_json:
        out.json({"owner": key.owner, "path": str(output), "commitment": key.commitment})
    else:
        out.text(f"wrote {output} (keep it secret)\ncommitment {key.commitment}")


def _make_signer(output: Path, owner: str | None, as_json: bool) -> None:
    if owner is not None:
        raise ConfigError(
            "--owner belongs to a watermark key; a signer's key holds no name: leave one of the two out."
        )
    from ..protocol.signer import Signer

    made = Signer.generate()
    public = made.save_new(output)
    if as_json:
        out.json({"path": str(output), "public": str(public), "keyid": made.public.keyid})
    else:
        out.text(f"wrote {output} (keep it secret) and {public} (publish it)\nkey id {made.public.keyid}")
