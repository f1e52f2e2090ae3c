"""What verbs have in common: options, which of them were typed, and the end of their help."""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from ..errors import ConfigError


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout, all else on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Lineage = Annotated[
    float, typer.Option(help="Strength of what LoRAs inherit (`verify` then tells it from their file); 0: none.")
]
LineageOnly = Annotated[
    bool, typer.Option("--lineage-only", help="Nothing but that: seconds, no training, no change of any picture.")
]
InSites = Annotated[
    int | None, typer.Option(help="Sites that the key selects for triggers; default 5, or as many as there are.")
]
OutSites = Annotated[
    int | None, typer.Option(help="Sites that the key selects to answer; default 7, or as many as there are.")
]
PipelineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--pipeline-option",
        help="NAME=VALUE of the pipeline's call, such as height=512; may be repeated. Default: the pipeline's own.",
    ),
]
OF_SUBPATHS = (
    "steps",
    "edit",
    "max_price",
    "in_sites",
    "out_sites",
    "pairs",
    "keep",
    "train",
    "profile",
    "accumulate",
    "reference",
)
"""Options that say nothing of a lineage carrier."""
EXIT_CODES = {0: "done", 1: "error", 2: "usage error"}


def epilog(example: str, exit_codes: Mapping[int, str] | None = None) -> str:
    """The end of a verb's help: a command to copy, and what each exit code says.

    Args:
        example (`str`): a whole command line.
        exit_codes (`Mapping[int, str]`, *optional*): those whose meaning is not that of `EXIT_CODES`.
    """
    codes = {**EXIT_CODES, **(exit_codes or {})}
    meanings = ", ".join(f"{code} {codes[code]}" for code in sorted(codes))
    return f"Example: {example}\n\nExit codes: {meanings}. Errors are one line; --debug shows the traceback."


def typed(context: typer.Context) -> list[str]:
    """Names of the options on the command line, whatever their values."""
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return [name for name, source in sources if source is not None and source.name == "COMMANDLINE"]


def refuse_with_lineage_only(given: Iterable[str]) -> None:
    """Raises ConfigError where an option is among `given` that a lineage carrier alone does not take."""
    if taken := [f"--{name.replace('_', '-')}" for name in given if name in OF_SUBPATHS]:
        raise ConfigError(
            f"{', '.join(taken)} say nothing of a lineage carrier alone (--lineage-only): leave them out."
        )


def parse_pipeline_options(given: Iterable[str]) -> dict[str, Any]:
    """`NAME=VALUE` texts as keywords; values are JSON, else texts.

    Raises:
        ConfigError: one has no name or no value.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, mark, value = text.partition("=")
        if not name.isidentifier() or not mark:
            raise ConfigError(f"--pipeline-option takes NAME=VALUE, got {text!r}.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
