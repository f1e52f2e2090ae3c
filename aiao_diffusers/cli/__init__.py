"""The `aiao` command; one file a verb. Errors of the library end as one line on stderr and exit code 1."""

import sys

import typer

from ..errors import AIAOError
from ._output import out
from .bench import app as bench
from .demo import demo
from .embed import embed
from .keygen import keygen
from .profile import profile
from .push import push
from .scan import scan
from .verify import verify


app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for verb in (keygen, embed, verify, push, scan, profile, demo):
    app.command()(verb)
app.add_typer(bench, name="bench")


def main() -> None:
    """Entry point of `aiao` and `hf-aiao`."""
    try:
        app()
    except AIAOError as error:
        out.error(f"{type(error).__name__}: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        out.error("interrupted; nothing half-written was left behind.")
        sys.exit(1)
