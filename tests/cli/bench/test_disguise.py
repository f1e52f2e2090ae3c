"""`aiao bench disguise`: its options reach the audit, and what that returns is printed and kept."""

from aiao_diffusers.bench.audits import disguises


def test_options_reach_the_audit_and_its_result_is_kept(options_reach):
    options_reach(disguises, "disguise", {"seeds": 2, "steps": 3, "only": "permute"})


def test_no_assets(aiao, tmp_path):
    aiao("bench", "disguise", "--assets", tmp_path).refused("SuspectError", "--assets")
