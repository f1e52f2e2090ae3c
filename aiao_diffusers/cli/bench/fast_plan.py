"""`aiao bench fast-plan`."""

from typing import Annotated

import typer

from .._assets import ASSETS, need_assets
from .._options import AsJson, Quiet
from ._common import Assets, Folder, deliver, progress


def fast_plan(
    assets: Assets = ASSETS,
    suite: Annotated[
        list[str] | None, typer.Option(help="Suite whose attacks are run; repeatable. Default: quick and sweeps.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Of attack and reading.")] = 3,
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """What the fast plan of looks loses on attacked models, and what a negative verdict costs by it."""
    need_assets(assets)
    from ...bench.audits import fast_plan as audit

    with progress("attacks", quiet=quiet) as told:
        rows = audit.measure(assets, suite or audit.SUITES, seeds, told)
    result = {"rows": audit.to_dicts(rows), "summary": audit.summary(rows)}
    deliver("fast-plan", result, audit.markdown(rows), output, as_json)
