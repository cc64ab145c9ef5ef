"""Stop strings: what is shown, what is held back, and that the cut of the text into tokens does not matter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.sampling.stop import StopChecker


def run(pieces, stops, **options):
    """(texts shown per piece, final text, stop) of one sequence whose pieces are its tokens 1, 2, …"""
    checker = StopChecker(stops, **options)
    shown = []
    for number, piece in enumerate(pieces, 1):
        check = checker.push(piece, number)
        shown.append(check.text)
        if check.stop is not None:
            return shown, "".join(shown), check.stop
    shown.append(checker.flush())
    return shown, "".join(shown), None


def one_shot(text, stops, *, from_char=0, include=False):
    """The definition, over the whole text: the first end of a match after ``from_char``, the longest there."""
    for end in range(from_char + 1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


def test_held_back_until_decided():
    shown, final, stop = run(["the E", "N", "ds", " END", "!"], ["END"])
    assert shown == ["the ", "", "ENds", " "]
    assert (final, stop) == ("the ENds ", "END")


@pytest.mark.parametrize(
    ("pieces", "stops", "final", "stop"),
    [
        (["ab", "c", "d"], ["bc"], "a", "bc"),
        (["abcd"], ["cd", "bc"], "a", "bc"),
        (["abcd"], ["abcd", "bc"], "a", "bc"),  # complete first
        (["xab"], ["b", "ab"], "x", "ab"),  # complete together: the longest
        (["x\n", "\ny"], ["\n\n", "\n"], "x", "\n"),
        (["aaab"], ["aab"], "a", "aab"),
        (["a", "a", "a", "b"], ["aab"], "a", "aab"),
        (["né", "é", "e"], ["éé"], "n", "éé"),
        (["👩‍", "👧!"], ["👧"], "👩‍", "👧"),
        (["", "a", "", "b", ""], ["ab"], "", "ab"),
        (["abab"], ["abc"], "abab", None),
        (["text"], [], "text", None),
    ],
)
def test_cases(pieces, stops, final, stop):
    assert run(pieces, stops)[1:] == (final, stop)


def test_include_keeps_the_stop_string():
    assert run(["say <e", "nd> more"], ["<end>"], include=True)[1:] == ("say <end>", "<end>")


def test_min_tokens():
    pieces = ["a.", "b", ".", "c."]
    assert run(pieces, ["."], min_tokens=1)[1:] == ("a.b", ".")
    assert run(pieces, ["."], min_tokens=3)[1:] == ("a.b.c", ".")
    assert run(pieces, ["."], min_tokens=4)[1:] == ("a.b.c.", None)
    assert run(["aa", "a"], ["aa"], min_tokens=1)[1:] == ("a", "aa")  # begun before, complete after


def test_without_stops_nothing_is_held():
    assert run(["a", "b"], [])[0] == ["a", "b", ""]


TEXTS = st.lists(st.text(alphabet="abé\n👧", max_size=4), max_size=25)
STOPS = st.lists(st.text(alphabet="abé\n👧", min_size=1, max_size=5), max_size=4)


@settings(max_examples=600, deadline=None)
@given(pieces=TEXTS, stops=STOPS, include=st.booleans(), min_tokens=st.integers(0, 4))
def test_streaming_equals_the_whole_text_at_once(pieces, stops, include, min_tokens):
    text = "".join(pieces)
    from_char = len("".join(pieces[:min_tokens]))
    expected, expected_stop = one_shot(text, stops, from_char=from_char, include=include)
    shown, final, stop = run(pieces, stops, include=include, min_tokens=min_tokens)
    assert (final, stop) == (expected, expected_stop)
    assert all(expected.startswith("".join(shown[:i])) for i in range(len(shown)))  # nothing ever taken back
    if not include and not min_tokens:
        assert not any(s in final for s in stops)


@settings(max_examples=200, deadline=None)
@given(pieces=TEXTS, stops=STOPS.filter(bool))
def test_no_more_than_needed_is_held(pieces, stops):
    checker, total, shown = StopChecker(stops), "", ""
    for number, piece in enumerate(pieces, 1):
        total += piece
        check = checker.push(piece, number)
        shown += check.text
        if check.stop is not None:
            return
        held = total[len(shown) :]
        assert total.startswith(shown)
        assert held == "" or any(s.startswith(held) and s != held for s in stops)
