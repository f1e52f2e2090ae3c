"""A secret word in the prompt, the trigger of several peers."""

import string

from ...errors import ConfigError
from ...mark.key import WatermarkKey
from ..context import AttackContext


def trigger_word(key: WatermarkKey) -> str:
    """Six secret letters, which no caption holds."""
    return "".join(key.shuffled("bench/word", string.ascii_lowercase)[:6])


def need_prompts(name: str, context: AttackContext) -> None:
    """Refuse a model without prompts for a method whose trigger stands in one.

    Raises:
        ConfigError: the model takes none.
    """
    if not context.prompted:
        raise ConfigError(
            f"method '{name}' marks text-to-image models, not a {type(context.pipe).__name__}: "
            "take 'input_trigger' or 'drawn_message'."
        )
