"""The end of a verb's help."""

from aiao_diffusers.cli._options import EXIT_CODES, epilog


def test_it_shows_the_example_and_the_codes_in_order():
    text = epilog("aiao keygen -o a.key")
    assert text.startswith("Example: aiao keygen -o a.key\n") and "--debug" in text
    assert "Exit codes: 0 done, 1 error, 2 usage error." in text


def test_a_verbs_own_codes_join_and_win():
    text = epilog("aiao verify x", {4: "not testable", 0: "verified", 3: "did not verify"})
    assert "0 verified, 1 error, 2 usage error, 3 did not verify, 4 not testable." in text
    assert EXIT_CODES == {0: "done", 1: "error", 2: "usage error"}  # what was shared is as it was
