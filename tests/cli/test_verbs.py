"""What all verbs share: their help, --json, --debug, --version, exit codes, and defaults that are the library's."""

import inspect
import json
import re
import sys
from dataclasses import fields

import pytest
import typer
from typer.testing import CliRunner

import aiao_diffusers
from aiao_diffusers import EmbedConfig, WatermarkKey
from aiao_diffusers.cli import VERBS, app, main
from aiao_diffusers.cli._options import epilog
from aiao_diffusers.cli._output import out
from aiao_diffusers.cli.embed import embed
from aiao_diffusers.cli.push import push
from aiao_diffusers.cli.scan import RELATIONS, scan
from aiao_diffusers.cli.verify import EXIT_CODE, verify
from aiao_diffusers.hub import model_tree
from aiao_diffusers.publishing.cards import CardFields
from aiao_diffusers.verification.plan import ReadingPlan


NAMES = [verb.__name__ for verb, *_ in VERBS]
PROGRESS = sorted({"check", "commit", "embed", "verify", "push", "scan", "probe", "profile", "demo"})


def plain(text: str) -> str:
    """Words alone: neither colours, frames nor line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╰╮╯─]", " ", text).split())


class TestHelp:
    @pytest.mark.parametrize("name", NAMES)
    def test_shows_an_example_and_the_exit_codes(self, aiao, name):
        code, text, _ = aiao(name, "--help")
        words = plain(text)
        assert code == 0 and f"Example: aiao {name} " in words
        assert re.search(r"Exit codes: 0 \w[^.]*, 1 error[^.]*, 2 usage error", words)

    @pytest.mark.parametrize("verb,example,codes", VERBS, ids=NAMES)
    def test_the_example_parses(self, verb, example, codes):
        command = typer.main.get_command(app).commands[verb.__name__]
        words = example.split(" > ")[0].split()
        assert words[:2] == ["aiao", verb.__name__]
        with command.make_context(verb.__name__, words[2:]):
            pass

    def test_verify_tells_its_verdicts_apart(self, aiao):
        words = plain(aiao("verify", "--help")[1])
        assert "0 verified, 1 error, 2 usage error, 3 ran and did not verify, 4 not testable" in words
        assert EXIT_CODE == {"verified": 0, "not_verified": 3, "not_testable": 4}

    def test_of_the_whole_names_each_verb(self, aiao):
        words = plain(aiao("--help")[1])
        assert all(f" {name} " in words for name in (*NAMES, "bench"))
        assert "--install-completion" in words and "--version" in words and "--debug" in words

    @pytest.mark.parametrize("name", NAMES)
    def test_options_that_all_share(self, name):
        command = typer.main.get_command(app).commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--json" in options and ("--quiet" in options) == (name in PROGRESS)

    def test_epilog_names_further_codes_in_order(self):
        text = epilog("aiao x", {3: "late", 0: "good"})
        assert text.startswith("Example: aiao x\n\nExit codes: 0 good, 1 error, 2 usage error, 3 late.")


class TestDefaults:
    """Written out in the verbs, for importing the library takes seconds; here they are held equal."""

    def test_of_embed(self):
        asked = inspect.signature(embed).parameters
        shared = {field.name for field in fields(EmbedConfig)} & asked.keys() - {"keep"}
        assert len(shared) == 11
        for name in shared:
            assert asked[name].default == getattr(EmbedConfig, name), name

    def test_of_scan(self):
        asked, library = inspect.signature(scan).parameters, inspect.signature(aiao_diffusers.scan).parameters
        assert RELATIONS == model_tree.RELATIONS and asked["limit"].default == model_tree.LIMIT
        for name in ("alpha", "trials", "seed", "workers", "limit", "max_gb", "since"):
            assert asked[name].default == library[name].default, name

    def test_of_verify_and_push(self):
        asked = inspect.signature(verify).parameters
        for name in ("alpha", "trials", "seed"):
            assert asked[name].default == getattr(ReadingPlan, name), name
        assert inspect.signature(push).parameters["relation"].default == CardFields.relation


class TestVersion:
    def test_is_the_package_s(self, aiao):
        assert aiao("--version")[:2] == (0, f"aiao_diffusers {aiao_diffusers.__version__}\n")


class TestCompletion:
    def test_verbs_are_offered(self, monkeypatch):
        monkeypatch.setenv("_AIAO_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "aiao ver")
        monkeypatch.setenv("COMP_CWORD", "1")
        done = CliRunner().invoke(app, [], prog_name="aiao")
        assert done.stdout.split() == ["verify"]


class TestErrors:
    def broken(self, monkeypatch, error):
        def fail(*_):
            raise error

        monkeypatch.setattr(WatermarkKey, "generate", fail)

    def test_not_foreseen_is_one_line_with_advice(self, aiao, monkeypatch, tmp_path):
        self.broken(monkeypatch, RuntimeError("first line\nsecond"))
        code, stdout, stderr = aiao("keygen", "--owner", "x", "-o", tmp_path / "a.key", "--json")
        assert (code, stdout) == (1, "")
        assert stderr == (
            "error: RuntimeError: first line second (not foreseen: run again with --debug for the traceback)\n"
        )

    @pytest.mark.parametrize("words", [("--debug", "keygen"), ("keygen", "--debug")])
    def test_debug_shows_the_traceback_wherever_it_stands(self, monkeypatch, tmp_path, words):
        self.broken(monkeypatch, RuntimeError("deep"))
        monkeypatch.setattr(sys, "argv", ["aiao", *words, "--owner", "x", "-o", str(tmp_path / "a.key")])
        with pytest.raises(RuntimeError, match="deep"):
            main()
        assert out.debug
        out.debug = False

    def test_interrupted(self, aiao, monkeypatch, tmp_path):
        self.broken(monkeypatch, KeyboardInterrupt())
        code, stdout, stderr = aiao("keygen", "--owner", "x", "-o", tmp_path / "a.key")
        assert (code, stdout) == (130, "") and stderr.startswith("error: interrupted")

    def test_misuse_is_two(self, aiao):
        code, stdout, stderr = aiao("verify", "--no-such-option")
        assert (code, stdout) == (2, "") and "Traceback" not in stderr

    def test_json_is_one_value(self, aiao, tmp_path):
        code, stdout, stderr = aiao("keygen", "--owner", "x", "-o", tmp_path / "a.key", "--json")
        assert code == 0 and json.loads(stdout)["owner"] == "x" and stderr == ""
