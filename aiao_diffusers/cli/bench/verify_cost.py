"""`aiao bench verify-cost`."""

from typing import Annotated, Any

import typer

from .._assets import ASSETS, need_assets
from .._options import AsJson, Quiet
from ._common import Assets, Folder, deliver, progress


def verify_cost(
    assets: Assets = ASSETS,
    geometry: Annotated[bool, typer.Option(help="Run the SD 1.5 geometry too (4 GB of memory, minutes).")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Paired timings of verdict and sampling.")] = 3,
    steps: Annotated[int, typer.Option(min=1, max=20, help="Guided steps timed a round; 20 are extrapolated.")] = 2,
    reduced: Annotated[int, typer.Option(min=8, help="Latent size of the reduced probe.")] = 16,
    latency_rounds: Annotated[int, typer.Option(min=1, help="Paired forwards of the shipped model, unarmed.")] = 101,
    half: Annotated[bool, typer.Option(help="The geometry in bfloat16, not float32.")] = True,
    output: Folder = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """What a verdict costs: FLOPs, wall clock, memory, unarmed latency."""
    need_assets(assets)
    import torch

    from ...bench.audits import cost

    large: dict[str, Any] | None = None
    if geometry:
        large = {"dtype": torch.bfloat16 if half else torch.float32, "rounds": rounds, "steps": steps}
    with progress("measurements", quiet=quiet) as told:
        result = cost.run(assets, geometry=large, reduced=reduced, latency_rounds=latency_rounds, progress=told)
    deliver("verify-cost", result, cost.markdown(result), output, as_json)
