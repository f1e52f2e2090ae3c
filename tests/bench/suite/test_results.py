"""The results file: killed writers, two writers, other versions, full disks."""

import json
import subprocess
import sys

import pytest

from aiao_diffusers.bench.suite import results
from aiao_diffusers.errors import ResultsError
from aiao_diffusers.files.jsonl import append_line, lock_folder


def row(number, **changes):
    return {
        "format": results.FORMAT,
        "id": f"id{number}",
        "kind": "cell",
        "versions": results.versions(),
        "note": "x" * 50,
    } | changes


@pytest.fixture
def file(tmp_path):
    path = tmp_path / results.FILE
    for number in range(3):
        append_line(path, row(number))
    return path


def test_round_trip(file):
    assert results.read(file) == results.read(file.parent) == [row(n) for n in range(3)]
    assert results.finished(file.parent) == {"id0", "id1", "id2"}


def test_a_failed_cell_is_not_finished(file):
    append_line(file, row(7) | {"verdict": "failed"})
    assert results.finished(file.parent) == {"id0", "id1", "id2"}
    append_line(file, row(7))
    assert results.finished(file.parent) == {"id0", "id1", "id2", "id7"}


def test_a_line_cut_by_a_kill_is_dropped_and_written_again(file):
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"format": 1, "id": "id3", "vers')
    assert len(results.read(file)) == 3
    assert results.finished(file.parent) == {"id0", "id1", "id2"}
    assert file.read_bytes() == whole
    append_line(file, row(3))
    assert [r["id"] for r in results.read(file)] == ["id0", "id1", "id2", "id3"]


def test_an_altered_line_within_is_refused(file):
    file.write_bytes(file.read_bytes().replace(b'"id1"', b'"id1', 1))
    with pytest.raises(ResultsError, match="line 2"):
        results.read(file)
    with pytest.raises(ResultsError, match="line 2"):
        results.finished(file.parent)


@pytest.mark.parametrize(
    "change", [{"format": results.FORMAT + 1}, {"versions": results.versions() | {"aiao_diffusers": "9.9"}}]
)
def test_another_version_is_refused_unless_asked(file, change):
    append_line(file, row(3, **change))
    with pytest.raises(ResultsError, match="line 4 .* ask for any version"):
        results.read(file)
    with pytest.raises(ResultsError):
        results.finished(file.parent)
    assert len(results.read(file, any_version=True)) == 4


@pytest.mark.slow
def test_a_full_disk_leaves_whole_lines(file):
    before = file.read_bytes()
    # A limit on the file's size stands in for the disk's: the kernel writes what fits and then fails.
    program = """
import resource, sys
from pathlib import Path
from aiao_diffusers.errors import ResultsError
from aiao_diffusers.files.jsonl import append_line
file = Path(sys.argv[1])
limit = file.stat().st_size + 20
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    append_line(file, {"format": 1, "id": "big", "note": "y" * 5000})
except ResultsError as error:
    print(error)
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True)
    assert done.returncode == 7 and "make room" in done.stdout, done.stderr
    assert file.read_bytes() == before


@pytest.mark.slow
def test_two_runs_on_one_folder(tmp_path):
    program = f"""
import sys
from pathlib import Path
from aiao_diffusers.files.jsonl import lock_folder
with lock_folder(Path({str(tmp_path)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ResultsError, match="in use by another run"), lock_folder(tmp_path):
            pass
        other.kill()  # as a killed run would: the lock goes with the process
        other.wait()
    with lock_folder(tmp_path):
        pass


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(ResultsError, match="choose another folder"), lock_folder(tmp_path / name):
            pass


def test_values_without_json_become_null(tmp_path):
    append_line(tmp_path / results.FILE, row(0, a=float("nan"), b=[float("inf"), 1.5]))
    assert json.loads((tmp_path / results.FILE).read_text())["b"] == [None, 1.5]


def test_no_results(tmp_path):
    with pytest.raises(ResultsError, match="run a suite first"):
        results.read(tmp_path)
    assert results.finished(tmp_path) == set()
