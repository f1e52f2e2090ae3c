"""Tables and curves from results written by hand, whose numbers are known."""

import shutil
from pathlib import Path

import pytest
from _results import row

from aiao_diffusers.bench.suite import results
from aiao_diffusers.bench.suite.curves import curves
from aiao_diffusers.bench.suite.tables import load, table, update
from aiao_diffusers.errors import ConfigError, ResultsError
from aiao_diffusers.files.jsonl import append_line
from aiao_diffusers.stats.multiple import clopper_pearson


ROOT = Path(__file__).parents[3]


def line_of(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def test_verdicts_count_and_bound(folder):
    text = table(folder, sections=["verdicts"])
    line = line_of(text, "| prune (amount 0.3)")
    low, high = clopper_pearson(12, 24)
    for cell in ("3/3", "-51.0, -50.0", "0.500 (n 24)", f"{low:.3f}-{high:.3f}", "-0.4, -0.1", "+10% sd 0"):
        assert f" {cell} |" in line
    assert " 0/3 " in line_of(text, "| prune (amount 0.7)")
    assert "structured" not in text  # defaults are not repeated


def test_a_cell_from_before_its_attack_had_a_further_choice_is_the_same_cell(folder):
    # The fixture's rows name both choices of `prune`; these one, and no other.
    for hyper, p in (({"amount": 0.7}, -3.0), ({"amount": 0.7, "structured": True}, -4.0)):
        append_line(folder / results.FILE, row("prune", hyper, 0, p))
    lines = table(folder, sections=["verdicts"]).splitlines()
    found = [line.split("|")[1:3] for line in lines if line.startswith("| prune (amount 0.7")]
    assert found == [[" prune (amount 0.7) ", " 0/3 "], [" prune (amount 0.7, structured True) ", " 0/1 "]]


def test_suites_and_significances_are_not_pooled(folder):
    for changes in ({"suite": "other"}, {"alpha": 0.5}):
        append_line(folder / results.FILE, row("none", {}, 7, -1.0, passed=0, **changes))
    text = table(folder, sections=["verdicts"])
    assert [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| none")] == [
        "3/3",
        "0/1",
        "0/1",
    ]
    assert "suite other" in text and "alpha 0.5" in text
    assert table(folder, sections=["wins"]).count("| none | 1/1 |") == 2
    assert table(folder, sections=["compare"]).count("| none |") == 3


def test_of_models_that_differ_the_range_is_told(tmp_path):
    for seed, passed in enumerate((0, 4, 8)):
        append_line(tmp_path / results.FILE, row("none", {}, seed, -50.0, passed=passed))
    low, high = clopper_pearson(12, 24)
    assert f"| {low:.3f}-{high:.3f}; models 0.00-1.00 |" in table(tmp_path, sections=["verdicts"])


def test_what_has_no_number_is_counted(tmp_path):
    for seed, p in enumerate((-50.0, -48.0)):
        append_line(tmp_path / results.FILE, row("none", {}, seed, p))
    ruined = {"loss_owner": float("nan"), "base_loss_owner": 0.1}
    append_line(tmp_path / results.FILE, row("none", {}, 2, None, verdict="not_testable", quality=ruined))
    line = line_of(table(tmp_path, sections=["verdicts"]), "| none")
    assert "| 2/3 |" in line and "| -49.0, -48.0 (1 of 3 without) |" in line and "+10% sd 0 (1 of 3 without)" in line


def test_a_seed_of_the_base_counts_once_with_its_pictures(tmp_path):
    stamp = {
        k: v for k, v in row("none", {}, 0, -1.0).items() if k in ("format", "versions", "alpha", "model", "data")
    }
    for suite, seed, quality in (("a", 0, {"images": 8, "cmmd": 1.0}), ("b", 0, {}), ("b", 1, {})):
        told = {"loss_owner": 0.1, "loss_data": 0.1} | quality
        line = {
            "kind": "reference",
            "id": f"{suite}{seed}",
            "suite": suite,
            "seed": seed,
            "quality": told,
            "again": told,
        }
        append_line(tmp_path / results.FILE, stamp | line)
    assert "| m | d | 2, 1 |" in table(tmp_path, sections=["reference"])


def test_a_control_that_is_the_twin_says_nothing_of_looks_beyond_it(tmp_path):
    looks = {"amplitude x1": -1.0, "beyond the twin x1, ranks": -2.6}
    for attack, hyper in (("none", {}), ("merge", {"weight": 0.5, "other": "base"}), ("noise", {"std": 0.1})):
        line = row(attack, hyper, 0, -50.0, looks={"amplitude x1": -50.0})
        line["controls"]["base"]["looks"] = looks
        append_line(tmp_path / results.FILE, line)
    text = table(tmp_path, sections=["looks"])
    assert line_of(text, "| none").endswith("| -1.0 |") and line_of(text, "| merge").endswith("| -1.0 |")
    assert line_of(text, "| noise").endswith("| -2.6 |")


def test_nothing_to_tell_or_update(tmp_path):
    (tmp_path / results.FILE).touch()
    with pytest.raises(ResultsError, match="no results in"):
        table(tmp_path)
    with pytest.raises(ConfigError, match="no document"):
        update(tmp_path / "none.md")
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match="no folder for curves"):
        curves([row("none", {}, 0, -1.0)], tmp_path / "file")


def test_wins_list_every_loss_and_false_verdict(folder):
    text = table(folder, sections=["wins"])
    assert "prune (amount 0.7) | 3/3 | -4.0; -3.0; -2.0 | 0/6" in text and "amount 0.3" not in text
    append_line(folder / results.FILE, row("cast", {"dtype": "float16"}, 0, -90.0, base=-9.0))
    assert "cast | 0/1" in table(folder, sections=["wins"]).replace("cast (dtype float16)", "cast")
    assert "(**1/1 verified**)" in table(folder, sections=["verdicts"])


def test_what_must_not_verify_is_no_loss(tmp_path):
    append_line(tmp_path / results.FILE, row("merge", {"weight": 0.0}, 0, -0.2, expect="not_verified", strength=0.0))
    assert "No cell was lost" in table(tmp_path, sections=["wins"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embedding", "lazy", "robustness", "verification"])
def test_the_documents_are_what_their_results_say(name, tmp_path):
    document = ROOT / "docs" / f"{name}.md"
    assert "<!-- bench: " in document.read_text()
    for results_file in (ROOT / "docs").rglob("*.jsonl"):
        copy = tmp_path / results_file.relative_to(ROOT / "docs")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(results_file, copy)
    shutil.copy(document, tmp_path)
    update(tmp_path / document.name)
    assert (tmp_path / document.name).read_text() == document.read_text()


def test_failed_cells_stay(folder):
    failed = row("noise", {"std": 9.0}, 0, None, verdict="failed", error="RuntimeError: burst", passed=0)
    del failed["controls"], failed["hashes"], failed["quality"], failed["trials"]
    append_line(folder / results.FILE, failed)
    text = table(folder)
    assert "RuntimeError: burst" in text and " 0/1 " in line_of(text, "| noise")


def test_marks_side_by_side_with_their_drop(folder):
    for seed in range(2):
        append_line(folder / results.FILE, row("none", {}, seed, -9.0, mark="peer", passed=8))
        hyper = {"amount": 0.3, "structured": False}
        append_line(folder / results.FILE, row("prune", hyper, seed, -1.0, mark="peer", passed=2))
    line = line_of(table(folder, sections=["compare"]), "| prune (amount 0.3)")
    assert "3/3; 50% (29-71), -50" in line and "0/2; 25% (7-52), -75" in line


def test_a_drop_is_against_the_same_seeds_model_and_data(tmp_path):
    for seed, passed in ((0, 8), (1, 6)):
        append_line(tmp_path / results.FILE, row("none", {}, seed, -9.0, passed=passed))
    append_line(tmp_path / results.FILE, row("none", {}, 0, -9.0, passed=2, data="e", id="other data"))
    hyper = {"amount": 0.3, "structured": False}
    append_line(tmp_path / results.FILE, row("prune", hyper, 0, -9.0, passed=4))
    append_line(tmp_path / results.FILE, row("prune", hyper, 2, -9.0, passed=4, data="e", id="of a third seed"))
    first, second = table(tmp_path, sections=["compare"]).split("m, attacker's data e:")
    assert "| none | 2/2; 88% (" in first and line_of(first, "| prune").endswith("-50 |")
    assert "| none | 1/1; 25% (" in second and line_of(second, "| prune").endswith(") |")


def test_a_cmmd_that_its_prompts_pull_down_has_a_star(tmp_path):
    quality = {"loss_owner": 0.11, "base_loss_owner": 0.1, "cmmd": -0.5, "clip_score": 0.5}
    for number, more in enumerate(({}, {"cmmd_paired": True}, {"clip_score": None})):
        line = row("noise", {"std": number / 10}, 0, -9.0, quality=quality | more)
        if more == {"clip_score": None}:
            del line["quality"]["clip_score"]  # no prompts, so no pairs
        append_line(tmp_path / results.FILE, line)
    lines = table(tmp_path, sections=["verdicts"]).splitlines()[-3:]
    assert ["-0.50 *" in line for line in lines] == [True, False, False]


def test_the_published_model_comes_first_whatever_finished_first(tmp_path):
    append_line(tmp_path / results.FILE, row("prune", {"amount": 0.3, "structured": False}, 0, -50.0, passed=4))
    append_line(tmp_path / results.FILE, row("none", {}, 0, -100.0))
    lines = table(tmp_path, sections=["compare"]).splitlines()
    assert lines[-2].startswith("| none") and "50% (16-84), -50" in lines[-1]


def test_looks_side_by_side(tmp_path):
    control = {"verdict": "not_verified", "log10_p": -0.1, "looks": {"a": -0.1, "b": -2.5, "louder": -0.4}}
    for seed, (a, b) in enumerate([(-3.0, -9.0), (-2.0, -30.0), (-4.0, -8.0)]):
        looks = {"a": a, "b": b} | ({"louder": -1.0} if seed else {})
        line = row("cast", {}, seed, min(a, b), looks=looks, controls={"base": control, "wrong_key": control})
        append_line(tmp_path / results.FILE, line)
    text = table(tmp_path, sections=["looks"])
    # A look that some cells did not need has no column: its median would be that of the hard ones alone.
    assert "| attack | n | a | b | controls, any look |" in text
    assert line_of(text, "| cast").endswith("| 3 | -3.0, -2.0 | -9.0, -8.0 | -2.5 |")


def test_rows_without_looks_make_no_table(folder):
    assert table(folder, sections=["looks"]).strip() == "No cell has looks."


def test_other_versions_and_sections_are_refused(folder):
    with pytest.raises(ConfigError, match="did you mean 'wins'"):
        table(folder, sections=["win"])
    append_line(folder / results.FILE, row("none", {}, 9, -1.0, versions={"aiao_diffusers": "0.0"}))
    with pytest.raises(ResultsError):
        table(folder)
    assert "10 cells" in table(folder, any_version=True)


def test_a_document_is_rewritten_between_its_marks(folder, tmp_path):
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- bench: wins results.jsonl -->\nold\n<!-- end -->\nafter\n")
    assert update(document) == ["wins results.jsonl"]
    first = document.read_text()
    assert first.startswith("before\n") and first.endswith("after\n") and "old" not in first and "amount 0.7" in first
    update(document)
    assert document.read_text() == first
    for text, message in (
        ("<!-- bench: wins results.jsonl -->\nno end", "no '<!-- end -->'"),
        ("<!-- bench: wins absent.jsonl -->\n<!-- end -->", "no results at"),
        ("<!-- bench: wins -->\n<!-- end -->", "at least one"),
    ):
        document.write_text(text)
        with pytest.raises((ConfigError, ResultsError), match=message):
            update(document)
        assert document.read_text() == text


def test_a_cell_measured_again_counts_once(folder):
    again = row("none", {}, 1, -7.0, id="of another model", hashes={"base": "e" * 64, "marked": "f" * 64})
    append_line(folder / results.FILE, again)
    rows = load([folder, folder])
    assert len(rows) == 9 and sum(r["log10_p"] == -7.0 for r in rows) == 1
    with pytest.raises(ResultsError, match="at least one"):
        load([])
