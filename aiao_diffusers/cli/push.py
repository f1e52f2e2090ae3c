"""`aiao push`."""

from pathlib import Path
from typing import Annotated

import typer

from ._options import AsJson, Quiet
from ._output import out
from ._progress import progress


KeyFile = Annotated[
    Path | None, typer.Option(help="Key file; the mark must verify with it. None: compare with the record's hash.")
]
CleanTwin = Annotated[
    str | None,
    typer.Option("--clean-twin", "--clean-base", help="Your unmarked original: refused when the upload is the same."),
]
BaseModel = Annotated[str | None, typer.Option(help="Hub id that the model was made from, for the card.")]
Tags = Annotated[list[str] | None, typer.Option(help="Tag for the card; may be repeated.")]
Datasets = Annotated[list[str] | None, typer.Option(help="Data set for the card; may be repeated.")]


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of the marked model.")],
    repo: Annotated[str, typer.Argument(help="Repository id, user/name; made when missing.")],
    key: KeyFile = None,
    clean_twin: CleanTwin = None,
    license: Annotated[str | None, typer.Option(help="Hub licence id for the card.")] = None,
    base_model: BaseModel = None,
    relation: Annotated[str, typer.Option(help="What the model is to it.")] = "finetune",
    tag: Tags = None,
    dataset: Datasets = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made when missing.")] = None,
    message: Annotated[str | None, typer.Option("-m", "--message", help="Commit message.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Publish a marked model with its record and card. The token is that of `hf auth login` or HF_TOKEN."""
    with progress(f"checking {folder} and sending it to {repo}", quiet=quiet or as_json):
        from ..mark.key import WatermarkKey
        from ..publishing.cards import CardFields
        from ..publishing.push import push as run

        made = run(
            folder,
            repo,
            WatermarkKey.load(key) if key else None,
            clean_twin=clean_twin,
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
