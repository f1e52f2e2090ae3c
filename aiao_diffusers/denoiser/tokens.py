"""What a pipeline's tokenizers make of prompts, before anything runs: how long they are, and what is cut off.

Source: our choice.
"""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import DataError


_UNBOUNDED = 10**6
"""Tokenizers without a limit say that they take some 1e30 tokens."""


def tokenizers(pipe: Any) -> dict[str, PreTrainedTokenizerBase]:
    """The pipeline's tokenizers by name, those inside processors too."""
    parts = getattr(pipe, "components", {})
    inner = {name: getattr(part, "tokenizer", part) for name, part in parts.items() if name.startswith("tokenizer")}
    return {name: part for name, part in inner.items() if isinstance(part, PreTrainedTokenizerBase)}


def count_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[int]:
    """Tokens of each prompt with those that the tokenizer adds; nothing is cut."""
    return [len(tokenizer(prompt, verbose=False)["input_ids"]) for prompt in prompts]


def longest(pipe: Any, prompts: Sequence[str]) -> list[int]:
    """Places of the prompts that are the longest to one of the tokenizers; in letters where there is none."""
    lengths = [count_tokens(tokenizer, prompts) for tokenizer in tokenizers(pipe).values()]
    places = [max(range(len(prompts)), key=row.__getitem__) for row in lengths or [list(map(len, prompts))]]
    return sorted(set(places))


def check_encoders(pipe: Any) -> None:
    """Raises DataError when parts that read prompts are missing, whether a pipeline needs each of them or any."""
    parts = getattr(pipe, "components", {})
    optional = getattr(type(pipe), "_optional_components", ())
    for kind in ("text_encoder", "tokenizer"):
        slots = {name: part for name, part in parts.items() if name.startswith(kind)}
        empty = [name for name, part in slots.items() if part is None]
        missing = empty if len(empty) == len(slots) else [name for name in empty if name not in optional]
        if missing:
            raise DataError(
                f"{type(pipe).__name__} was loaded without {' and '.join(missing)}, so that nothing reads its prompts: load it whole, "
                "or pass data=LatentData(...) with conditioning that was encoded before."
            )


def warn_of_cuts(pipe: Any, prompts: Sequence[str], options: Mapping[str, Any]) -> None:
    """Warns when prompts are longer than all of the tokenizers take, before anything runs: their ends are not read."""
    asked = options.get("max_sequence_length", _default_length(pipe))
    found = tokenizers(pipe)
    limits = [tokenizer.model_max_length for tokenizer in found.values()]
    # The option is of the tokenizer that takes the most; the others take what they say.
    limit = max(limits, default=_UNBOUNDED)
    limit = min(limit, asked) if isinstance(asked, int) else limit
    if limit >= _UNBOUNDED:
        return
    lengths = [count_tokens(tokenizer, prompts) for tokenizer in found.values()]
    cut = sum(min(row) > limit for row in zip(*lengths, strict=True))
    if cut:
        warnings.warn(
            f"{cut} of {len(prompts)} prompts are longer than the {limit} tokens that {type(pipe).__name__} reads: their ends are cut "
            "off. Shorten them, or raise max_sequence_length where the pipeline takes it.",
            stacklevel=4,
        )


def _default_length(pipe: Any) -> Any:
    parameter = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    return None if parameter is None else parameter.default
