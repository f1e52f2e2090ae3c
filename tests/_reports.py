"""A report as a verifier would return it, written by hand, and one of a suspect that could not be read."""

from aiao_diffusers.stats.hits import SiteTest, site_log10_p
from aiao_diffusers.verification.report import VerificationReport


SITES = tuple(SiteTest(f"up_blocks.{i}.attn1", 64, h, site_log10_p(64, 32, h)) for i, h in enumerate((64, 50, 40)))
FIELDS = {
    "verdict": "verified",
    "suspect": "<img src=x onerror=alert(1)>",
    "alpha": 1e-6,
    "log10_p": -20.5,
    "log10_p_floor": -54.0,
    "bit_accuracy": 154 / 192,
    "verification_rate": 0.75,
    "verification_rate_ci": (0.3, 0.9),
    "trials": 4,
    "denoiser_evals": 8,
    "sites": SITES,
    "proves": "descent",
    "controls": {"wrong_response": {"n": 4, "median_log10_p": -0.3, "hits": [90, 96, 98, 104]}},
    "warnings": ("a <b>bold</b> warning",),
    "looks": ({"label": "amplitude x1", "trials": 1, "log10_p": -20.8, "log10_p_adjusted": -20.5},),
    "hashes": {"suspect": "aa" * 32, "base": None, "marked": "bb" * 32, "record": "cc" * 32, "commitment": "dd" * 32},
    "subpaths": (
        {"in": ["a", "b"], "bits": {s.name: 1.0 for s in SITES}},
        {"in": ["b"], "bits": {SITES[2].name: 0.5}},
    ),
    "seed": 0,
}
REPORT = VerificationReport(**FIELDS)
NOT_TESTABLE = VerificationReport("not_testable", "x", 1e-6, reason="the file holds <NaN>")
