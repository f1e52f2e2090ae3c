"""The cells of a suite: an impossible one stays in the table and costs no other."""

from aiao_diffusers.bench.suite.runner import run_suite


def test_one_impossible_value_does_not_cost_the_other_cells(own, tmp_path):
    attacks = [{"attack": "finetune", "steps": 1, "lr": [-1.0]}, {"attack": "noise", "std": 0.05}]
    rows = run_suite(own(attacks=attacks), tmp_path / "out")
    found = {row["attack"]: row for row in rows if row["kind"] == "cell"}
    assert found["finetune"]["verdict"] == "failed" and "learning rate" in found["finetune"]["error"]
    assert found["noise"]["verdict"] == "verified"
