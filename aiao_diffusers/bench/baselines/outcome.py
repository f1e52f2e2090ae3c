"""What a method's own rule says of a suspect."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """One verification.

    Args:
        verdict (`str`): `verified`, `not_verified` or `not_testable`.
        log10_p (`float`, *optional*): None where the method has no p-value.
        bits (`float`, *optional*): share of agreeing bits, all trials together; chance is .5.
        passed, trials (`int`): single trials with p <= alpha, and how many were run: the verification rate.
        evals (`int`): single-sample denoiser forwards spent.
        statistic (`float`, *optional*): what the rule compares where there is no p-value.
    """

    verdict: str
    log10_p: float | None = None
    bits: float | None = None
    passed: int = 0
    trials: int = 0
    evals: int = 0
    statistic: float | None = None
