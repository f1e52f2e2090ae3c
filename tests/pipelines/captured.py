"""What is learnt of each miniature pipeline's denoiser, as a table: `python -m tests.pipelines.captured [FAMILY ...]`."""

import sys
from typing import Any

from diffusers.utils import logging

from aiao_diffusers.denoiser.capture import Captured, learn
from aiao_diffusers.errors import AIAOError

from . import FAMILIES
from .family import Family


REFUSED = {
    "cosmos": "the noise of a 'EDMEulerScheduler' is of no known kind",
    "cosmos_2": "the noise of a 'FlowMatchEulerDiscreteScheduler' is of no known kind",
    "ltx_2": "'audio_hidden_states' changes from step to step",
    "lumina_next": "no valid argument: 'cross_attention_kwargs.base_sequence_length'",
    "stable_cascade": "has no denoiser that a scheduler drives",
}
"""Families whose call is not learnt, and words of the reason that is given."""
SECOND = {"wan_2_2": "transformer_2"}
"""Families with two denoisers, and the name of the second."""


def capture(family: Family, pipe: Any, denoiser: str | None = None) -> Captured:
    """What `learn` finds of a pipeline that the family built."""
    options = {name: value for name, value in family.options.items() if name not in family.rows}
    rows = {name: family.options[name] for name in family.rows if name != "batch_size"}
    return learn(pipe, options=options, rows=rows, denoiser=denoiser)


def describe(family: Family) -> dict[str, str]:
    """A row of the table: the classes, and how the denoiser is called or why that is not learnt."""
    pipe = family.build()
    told = {"family": family.name, "pipeline": type(pipe).__name__, "scheduler": type(pipe.scheduler).__name__}
    try:
        found = capture(family, pipe)
    except AIAOError as error:
        return {**told, "refused": str(error)}
    call = found.call
    lines = (f"{name} = {scale:g} t{offset:+g}" for name, (scale, offset) in call.times.items())
    return {
        **told,
        "denoiser": type(getattr(pipe, found.denoiser)).__name__,
        "times": ", ".join(line.removesuffix("+0") for line in lines),
        "sign": f"{call.sign:+g}",
        "rows": ", ".join(found.data.conditioning) or "none",
        "shared": ", ".join(dict.fromkeys(name.partition(".")[0] for name in (*call.shared, *call.fixed, *call.each)))
        or "none",
        "given": ", ".join(f"{name}={value:g}" for name, value in found.off.items()) or "nothing",
        "replay": f"{found.replay:.1e}",
    }


def table(names: list[str]) -> str:
    """Markdown, a row for each family that is learnt, and a list of those that are not."""
    rows = [describe(FAMILIES[name]) for name in names]
    learnt = [row for row in rows if "refused" not in row]
    heads = list(learnt[0]) if learnt else []
    lines = [" | ".join(("", *heads, "")).strip(), "|" + "---|" * len(heads)] if heads else []
    lines += [" | ".join(("", *row.values(), "")).strip() for row in learnt]
    return "\n".join([*lines, "", *(f"- {row['family']}: {row['refused']}" for row in rows if "refused" in row)])


if __name__ == "__main__":
    logging.set_verbosity_error()
    print(table(sys.argv[1:] or list(FAMILIES)))
