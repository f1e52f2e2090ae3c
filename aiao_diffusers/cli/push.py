"""`aiao push`."""

from pathlib import Path
from typing import Annotated

import typer

from ..mark.key import WatermarkKey
from ..publishing.cards import CardFields
from ..publishing.push import push as run
from ._output import out


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of the marked model.")],
    repo: Annotated[str, typer.Argument(help="Repository id, user/name; made when missing.")],
    key: Annotated[
        Path | None, typer.Option(help="Key file; the mark must verify with it. None: compare with the record's hash.")
    ] = None,
    clean_base: Annotated[
        str | None, typer.Option(help="The unmarked twin: refused when the upload is the same.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Hub licence id for the card.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id that the model was made from, for the card.")] = None,
    relation: Annotated[str, typer.Option(help="What the model is to it.")] = CardFields.relation,
    tag: Annotated[list[str] | None, typer.Option(help="Tag for the card; may be repeated.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Data set for the card; may be repeated.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made when missing.")] = None,
    message: Annotated[str | None, typer.Option("-m", "--message", help="Commit message.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Publish a marked model with its record and card. The token is that of `hf auth login` or HF_TOKEN."""
    made = run(
        folder,
        repo,
        WatermarkKey.load(key) if key else None,
        clean_twin=clean_base,
        card=CardFields(
            license=license,
            base_model=base_model,
            relation=relation,
            tags=tuple(tag or ()),
            datasets=tuple(dataset or ()),
        ),
        private=private or None,
        create_pr=create_pr,
        revision=revision,
        commit_message=message,
    )
    if as_json:
        out.json({"repo": repo, "commit": made.oid, "url": made.commit_url, "pull_request": made.pr_url})
    else:
        out.text(f"published {made.pr_url or made.commit_url}")
