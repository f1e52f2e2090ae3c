"""Words of strangers are cut; a table is the same whether it is made at once or printed as it grows."""

from aiao_diffusers.files.text import markdown_table, short, table_head, table_row


def test_short():
    assert short("a") == "'a'" and short({"b": 1}) == "{'b': 1}"
    assert short("x" * 10**6) == "'" + "x" * 118 + "…" and len(short("x" * 200, limit=20)) == 20
    assert "\n" not in short("a\nb")


def test_a_table_by_hand():
    assert markdown_table(("a", "b"), [("1", ""), ("2", "x y")]) == "| a | b |\n|---|---|\n| 1 |  |\n| 2 | x y |"
    assert markdown_table(("a",), []) == "| a |\n|---|"


def test_printed_as_it_grows():
    rows = [("1", "2"), ("3", "4")]
    assert "\n".join([table_head(("a", "b")), *map(table_row, rows)]) == markdown_table(("a", "b"), iter(rows))
