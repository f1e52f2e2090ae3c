"""Whole or not at all: what is written appears at once, and a failure leaves what was there and nothing beside it."""

import errno
import os
import stat

import pytest

from aiao_diffusers.files.atomic import write_bytes, write_folder, write_private_new, write_text, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class TestWriteWhole:
    def test_appears_at_the_end_of_the_block(self, tmp_path):
        path = tmp_path / "made" / "a.json"
        with write_whole(path) as partial:
            assert partial == tmp_path / "made" / ".a.json.partial"
            partial.write_text("new")
            assert not path.exists()
        assert path.read_text() == "new" and names(path.parent) == ["a.json"]

    @pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
    def test_a_failure_leaves_the_old_file_alone(self, tmp_path, error):
        path = tmp_path / "a.json"
        path.write_text("old")
        with pytest.raises(type(error)), write_whole(path) as partial:
            partial.write_text("ne")
            raise error
        assert path.read_text() == "old" and names(tmp_path) == ["a.json"]

    def test_a_block_that_writes_nothing_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError), write_whole(tmp_path / "a"):
            pass
        assert names(tmp_path) == []

    def test_writers_with_an_ending_each_do_not_meet(self, tmp_path):
        with write_whole(tmp_path / "a", ending="1") as first, write_whole(tmp_path / "a", ending="2") as second:
            first.write_text("1")
            second.write_text("2")
        assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "1"

    def test_text_and_bytes(self, tmp_path):
        write_text(tmp_path / "t", "a – b\n")
        write_bytes(tmp_path / "b", b"\0\r\n")
        assert (tmp_path / "t").read_bytes() == "a – b\n".encode() and (tmp_path / "b").read_bytes() == b"\0\r\n"


class TestPrivate:
    def test_mode_and_never_overwritten(self, tmp_path):
        path = tmp_path / "made" / "key"
        write_private_new(path, "secret\n")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text() == "secret\n"
        with pytest.raises(FileExistsError):
            write_private_new(path, "other")
        assert path.read_text() == "secret\n" and names(path.parent) == ["key"]

    def test_where_the_disk_knows_no_links(self, tmp_path, monkeypatch):
        def refuse(source, target):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
        write_private_new(tmp_path / "key", "secret")
        with pytest.raises(FileExistsError):
            write_private_new(tmp_path / "key", "other")
        assert (tmp_path / "key").read_text() == "secret" and names(tmp_path) == ["key"]
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600

        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(PermissionError):
            write_private_new(tmp_path / "second", "secret")
        assert names(tmp_path) == ["key"]  # the claimed name is given back


class TestFolder:
    def test_appears_at_the_end_of_the_block(self, tmp_path):
        with write_folder(tmp_path / "made" / "model") as partial:
            (partial / "a").write_text("a")
            assert names(tmp_path / "made") == [partial.name] and partial.name.startswith(".model.")
        assert names(tmp_path / "made") == ["model"] and names(tmp_path / "made" / "model") == ["a"]

    def test_a_failure_leaves_nothing(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), write_folder(tmp_path / "model", prefix=".partial-") as partial:
            (partial / "a").write_text("a")
            raise KeyboardInterrupt
        assert names(tmp_path) == []
