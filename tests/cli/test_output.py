"""Data goes to stdout, all else to stderr."""

import json

from aiao_diffusers.cli._output import Output


def test_each_verb_on_its_stream(capsys):
    out = Output()
    out.json({"a": [1, None]})
    out.text("for people")
    seen = capsys.readouterr()
    first, second = seen.out.splitlines()
    assert json.loads(first) == {"a": [1, None]} and second == "for people" and seen.err == ""
    out.note("[red]as it is[/red]")
    out.error("what went wrong")
    seen = capsys.readouterr()
    assert seen.out == "" and "[red]as it is[/red]" in seen.err
    assert seen.err.splitlines()[-1] == "error: what went wrong"


def test_a_table_holds_its_cells(capsys):
    Output().table("verdicts", ["suspect", "p"], [["a", "-9.0"], ["b", ""]])
    seen = capsys.readouterr()
    assert seen.err == "" and all(word in seen.out for word in ("verdicts", "suspect", "-9.0", "b"))
