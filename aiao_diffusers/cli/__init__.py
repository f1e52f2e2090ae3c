"""The `aiao` command; one file a verb.

Nothing heavy is imported before a verb runs: `aiao --help` and shell completion answer at once. Errors end as one line on
stderr and exit code 1.
"""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import aiao_diffusers

from ..errors import AIAOError
from ._options import epilog
from ._output import out
from ._terminal import own_terminal
from .bench import app as bench_app
from .check import check
from .commit import commit
from .demo import demo
from .disclose import disclose
from .embed import embed
from .keygen import keygen
from .probe import probe
from .profile import profile
from .push import push
from .scan import scan
from .verify import verify


INTERRUPTED = 130  # the shell's number for Ctrl-C, into which Typer turns a KeyboardInterrupt
# Verb, an example, and the exit codes that say more than done, error or misuse.
VERBS: tuple[tuple[Any, str, dict[int, str]], ...] = (
    (keygen, "aiao keygen --owner Acme -o acme.key", {}),
    (commit, "aiao commit --key acme.key --record-of base/ -o commitment.json", {}),
    (embed, "aiao embed base/ --key acme.key -o marked/", {}),
    (
        verify,
        "aiao verify suspect/ --key acme.key --record marked/",
        {0: "verified", 3: "ran and did not verify", 4: "not testable"},
    ),
    (
        check,
        "aiao check evidence/ --signer signer.pub",
        {0: "holds, verified", 1: "error, or it does not hold", 3: "holds, not verified", 4: "holds, not testable"},
    ),
    (disclose, "aiao disclose marked/ --key acme.key --leaf 1 -o leaf.json", {}),
    (probe, "aiao probe suspect/ --prompts prompts.txt --seed 7 -o probes.safetensors", {}),
    (push, "aiao push marked/ acme/model --key acme.key --license mit", {}),
    (scan, "aiao scan acme/model --key acme.key -o scan/", {}),
    (profile, "aiao profile base/ tuned/ --json > layers.json", {}),
    (demo, "aiao demo -o report/", {1: "error, or a verdict is not the expected one"}),
)


class _DebugAnywhere(TyperGroup):
    """`--debug` counts wherever on the line it stands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # A stable sort: all other words keep their order.
        return super().parse_args(ctx, sorted(args, key=lambda word: word != "--debug"))


app = typer.Typer(
    cls=_DebugAnywhere,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=epilog("aiao verify --help", {3: "ran and did not verify", 4: "not testable"}),
)


def _version(asked: bool) -> None:
    if asked:
        out.text(f"aiao_diffusers {aiao_diffusers.__version__}")
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks, and what other libraries say; anywhere on the line.")
    ] = False,
) -> None:
    """Mark diffusion models, publish them, and prove from a suspect's weights that it descends from them."""
    out.debug = debug
    if not debug:
        context.with_resource(own_terminal())


for _verb, _example, _codes in VERBS:
    app.command(epilog=epilog(_example, _codes))(_verb)
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Entry point of `aiao` and `hf-aiao`."""
    try:
        app()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            out.error("interrupted; nothing half-written was left behind.")
        raise
    except Exception as error:
        if out.debug:
            raise
        advice = "" if isinstance(error, AIAOError) else " (not foreseen: run again with --debug for the traceback)"
        out.error(f"{type(error).__name__}: {error}{advice}")
        sys.exit(1)
