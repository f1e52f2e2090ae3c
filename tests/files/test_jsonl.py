"""A log that survives any stop: one writer a folder, whole lines, a torn one cut. A full disk: `bench/suite/test_results`."""

import json
import subprocess
import sys

import pytest

from aiao_diffusers.errors import ResultsError
from aiao_diffusers.files.jsonl import append_line, cut_torn_line, lock_folder, read_lines


class TestLock:
    def test_one_run_at_a_time_and_free_after_a_kill(self, tmp_path):
        program = (
            "import sys; from pathlib import Path; from aiao_diffusers.files.jsonl import lock_folder\n"
            "with lock_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
        )
        words = [sys.executable, "-c", program, tmp_path / "out"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "held\n"
            with (
                pytest.raises(ResultsError, match=r"out' is in use by another run: wait"),
                lock_folder(tmp_path / "out"),
            ):
                pass
            other.kill()
            other.wait()
        with lock_folder(tmp_path / "out"), pytest.raises(ResultsError, match="in use"), lock_folder(tmp_path / "out"):
            pass

    def test_is_given_back_when_the_body_raises(self, tmp_path):
        with pytest.raises(KeyError), lock_folder(tmp_path):
            raise KeyError
        with lock_folder(tmp_path):
            pass

    def test_a_folder_that_cannot_be(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ResultsError, match="choose another folder"), lock_folder(tmp_path / "file" / "below"):
            pass


class TestLines:
    def test_round_trip(self, tmp_path):
        file = tmp_path / "log.jsonl"
        rows = [{"a": 1}, {"b": [1.5, None]}]
        for row in rows:
            append_line(file, row)
        assert [json.loads(line) for line in read_lines(file)] == rows
        assert file.read_text() == '{"a": 1}\n{"b": [1.5, null]}\n'

    def test_a_torn_line_is_no_line_and_is_cut(self, tmp_path):
        file = tmp_path / "log.jsonl"
        append_line(file, {"a": 1})
        whole = file.read_bytes()
        for torn in (b'{"b', b"x" * 9000):
            file.write_bytes(whole + torn)
            assert read_lines(file) == [b'{"a": 1}']
            cut_torn_line(file)
            assert file.read_bytes() == whole
        cut_torn_line(file)
        assert file.read_bytes() == whole

    def test_numbers_that_json_lacks_become_null(self, tmp_path):
        append_line(tmp_path / "log", {"a": float("nan"), "b": [float("inf"), (1.5, -float("inf"))]})
        assert json.loads((tmp_path / "log").read_text()) == {"a": None, "b": [None, [1.5, None]]}


def test_a_run_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError), lock_folder(tmp_path / "new"):
        raise ValueError("refused")
    assert not (tmp_path / "new").exists()
    with lock_folder(tmp_path / "kept"):
        append_line(tmp_path / "kept" / "log.jsonl", {})
    (tmp_path / "own").mkdir()
    with lock_folder(tmp_path / "own"):
        pass
    assert (tmp_path / "kept" / "log.jsonl").exists() and (tmp_path / "own").exists()
