"""`aiao bench inversion`: its options reach the audit, and what that returns is printed and kept."""

from aiao_diffusers.bench.audits import inversion


def test_options_reach_the_audit_and_its_result_is_kept(options_reach):
    options_reach(inversion, "inversion", {"seeds": 2, "starts": 3, "steps": 0})


def test_no_assets(aiao, tmp_path):
    aiao("bench", "inversion", "--assets", tmp_path).refused("SuspectError", "--assets")
