"""`aiao push`: one command, one commit, in a process whose Hub is the test's server."""

import json
import shutil

import pytest
from _shipped import ASSETS, DEMO


@pytest.mark.slow
def test_what_is_pushed_is_told_as_json(server, python, tmp_path):
    folder = shutil.copytree(ASSETS / "marked", tmp_path / "marked", ignore=shutil.ignore_patterns("README.md"))
    DEMO.save(tmp_path / "demo.key")
    words = ["push", str(folder), "owner/marked", "--key", str(tmp_path / "demo.key"), "--license", "mit", "--json"]
    said = json.loads(
        python(f"import sys\nfrom aiao_diffusers.cli import main\nsys.argv = ['aiao', *{words}]\nmain()")
    )
    assert (said["repo"], said["commit"]) == ("owner/marked", server.sha("owner/marked"))
    assert said["pull_request"] is None


def test_a_missing_key_is_refused_before_anything_is_sent(aiao, server, tmp_path):
    aiao("push", ASSETS / "marked", "owner/marked", "--key", tmp_path / "no.key").refused("KeyFileError", "no.key")
    assert not server.log
