"""How long measurements tell where they are."""

import logging
from collections.abc import Callable


Progress = Callable[[int, int, str], None]
"""`(done, of how many, a line on what was just finished)`; the line is empty where there is nothing to say."""

logger = logging.getLogger(__name__)


def log_progress(done: int, total: int, line: str) -> None:
    """Lines to the log; numbers nowhere."""
    if line:
        logger.info(line)
