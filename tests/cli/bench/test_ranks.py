"""`aiao bench ranks`: its options reach the audit, and what that returns is printed and kept."""

from aiao_diffusers.bench.audits import rank_scores


def test_options_reach_the_audit_and_its_result_is_kept(options_reach):
    options_reach(rank_scores, "ranks", {"seeds": 2, "trials": 3, "wrong": 4})


def test_no_assets(aiao, tmp_path):
    aiao("bench", "ranks", "--assets", tmp_path).refused("SuspectError", "--assets")
