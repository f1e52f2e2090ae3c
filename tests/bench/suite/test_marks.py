"""A suite's marks are made whole, kept, and found again."""

import pytest

from aiao_diffusers.bench.suite import marks
from aiao_diffusers.bench.suite.marks import OWNER, iter_marks, load_mark
from aiao_diffusers.bench.suite.runner import run_suite
from aiao_diffusers.denoiser.hashes import weights_sha256
from aiao_diffusers.errors import DataError, ResultsError


def test_what_a_killed_run_left_half_made_goes(own, tmp_path):
    left = tmp_path / "out" / "marks" / ".partial-x"
    left.mkdir(parents=True)
    run_suite(own(), tmp_path / "out")
    assert not left.exists() and any(left.parent.iterdir())


@pytest.mark.slow
def test_marks_are_found_again_with_their_keys_and_weights(own, tmp_path):
    config = own(marks={"kin": {"method": "likeness", "keys": 2}}, seeds=[2, 3])
    with pytest.raises(DataError, match="no marks of suite own"):
        next(iter_marks(config, tmp_path / "out"))
    rows = [row for row in run_suite(config, tmp_path / "out") if row["kind"] == "cell"]
    found = list(iter_marks(config, tmp_path / "out"))
    assert {(one.name, one.number) for one in found} == {("kin", 0), ("kin", 1)}
    assert {one.key.commitment for one in found} == {OWNER.child(f"bench/{n}").commitment for n in (0, 1)}
    assert {weights_sha256(one.denoiser) for one in found} == {row["hashes"]["marked"] for row in rows}
    assert all(weights_sha256(load_mark(one.folder, one.context)) == weights_sha256(one.denoiser) for one in found)


def test_a_mark_that_cannot_be_written_leaves_nothing(own, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(marks, "write_weights", full)
    with pytest.raises(ResultsError, match="make room and run again"):
        run_suite(own(), tmp_path / "out")
    assert list((tmp_path / "out" / "marks").iterdir()) == []
