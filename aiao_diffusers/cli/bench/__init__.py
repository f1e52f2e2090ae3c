"""Measure what the documents state, and what is yours."""

import typer

from .._options import epilog
from .disguise import disguise
from .embed import embed
from .fast_plan import fast_plan
from .forgery import forgery
from .formats import formats
from .fuzz import fuzz
from .inversion import inversion
from .leaves import leaves
from .lineage import lineage
from .list import list_names
from .memory import memory
from .nulls import nulls
from .ranks import ranks
from .run import run
from .table import table
from .verify_cost import verify_cost


app = typer.Typer(no_args_is_help=True, help=__doc__)
for name, verb, example, failure in (
    ("run", run, "aiao bench run quick -o runs/quick --jobs 2", "a verdict is not the expected one"),
    ("table", table, "aiao bench table runs/quick --section verdicts", ""),
    ("list", list_names, "aiao bench list", ""),
    ("verify-cost", verify_cost, "aiao bench verify-cost --no-geometry", ""),
    ("nulls", nulls, "aiao bench nulls --pairs 1000 -o nulls", ""),
    ("disguise", disguise, "aiao bench disguise --seeds 5", ""),
    ("ranks", ranks, "aiao bench ranks --seeds 5", ""),
    ("formats", formats, "aiao bench formats", "a format is not as expected"),
    ("memory", memory, "aiao bench memory BASE --latents FILE --train lora", ""),
    ("fast-plan", fast_plan, "aiao bench fast-plan --suite quick", ""),
    ("embed", embed, "aiao bench embed --images 0", ""),
    ("inversion", inversion, "aiao bench inversion --seeds 3", ""),
    ("forgery", forgery, "aiao bench forgery --draws 100 -o forgery", "scheme aiao-2 gave a verdict"),
    ("leaves", leaves, "aiao bench leaves --steps 100", ""),
    ("lineage", lineage, "aiao bench lineage --part grid --cells 20", ""),
    ("fuzz", fuzz, "aiao bench fuzz --rounds 1000", "a loader broke a promise"),
):
    app.command(name, epilog=epilog(example, {1: f"error, or {failure}"} if failure else {}))(verb)
