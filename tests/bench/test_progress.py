"""Where nobody watches, progress is a line in the log."""

from aiao_diffusers.bench.progress import log_progress


def test_lines_go_to_the_log_and_numbers_nowhere(caplog, capsys):
    with caplog.at_level("INFO"):
        log_progress(1, 2, "first row")
        log_progress(2, 2, "")
    assert [record.message for record in caplog.records] == ["first row"]
    assert capsys.readouterr() == ("", "")
