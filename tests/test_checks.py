"""Numbers that are counts, rates or threads; what is none is refused with its name, and shown in short."""

import pytest

from framework.checks import MAX_LINE, MAX_SHOWN, MAX_THREADS, check_threads, message, positive, printable, shown, whole


@pytest.mark.parametrize("value", [1e-9, 3, 2.5])
def test_a_positive_number_is_a_float(value):
    assert positive("rate", value) == value
    assert isinstance(positive("rate", value), float)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, None, "3"])
def test_what_is_not_positive_is_named(value):
    with pytest.raises(ValueError, match=r"rate=.* is not a finite number above 0"):
        positive("rate", value)


def test_a_whole_number_may_have_a_least_one():
    assert (whole("n", 1), whole("n", 0, at_least=0)) == (1, 0)
    for value, at_least in ((0, 1), (-1, 0), (1.0, 1), (True, 1), (None, 1)):
        with pytest.raises(ValueError, match=f"n=.* is not a whole number of at least {at_least}"):
            whole("n", value, at_least)


def test_threads_are_within_what_pytorch_can_take():
    for value in (None, 1, MAX_THREADS):
        check_threads("engine.num_threads", value)
    for value in (0, -1, MAX_THREADS + 1):
        with pytest.raises(ValueError, match=f"engine.num_threads {value} must be from 1 to {MAX_THREADS}"):
            check_threads("engine.num_threads", value)


def test_a_message_shows_a_value_in_short():
    assert shown("a\x1b") == "'a\\x1b'"
    assert shown([1, 2]) == "[1, 2]"
    for value in ("a" * 9_000_000, ["a"] * 1_000_000, 10**4000):
        assert len(shown(value)) == MAX_SHOWN == 80
        assert repr(value).startswith(shown(value)[:-1])


def test_what_would_steer_a_terminal_is_escaped():
    assert printable("\x1b[31mred\x07\r\x00\x9b") == r"\x1b[31mred\x07\r\x00\x9b"
    assert printable("back \u202e and forth \u200b") == r"back \u202e and forth \u200b"
    assert printable("TTFT ≤ 500 ms – “ü”\n\t漢\u3000🙂") == "TTFT ≤ 500 ms – “ü”\n\t漢\u3000🙂"
    assert printable("\ud800") == r"\ud800"


def test_a_message_has_no_line_that_is_too_long():
    assert message("a\nb\x07") == "a\nb\\x07"
    assert [len(line) for line in message("a" * 9_000_000 + "\nb").split("\n")] == [MAX_LINE, 1]
