"""Regular expressions: the whole text, linear time, and errors that point at what is wrong."""

from __future__ import annotations

import pytest

from l7proxy.patterns import MAX_LENGTH, MAX_PROGRAM, PatternError, compile_pattern


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("/v[0-9]+", b"/v1", True),
        ("/v[0-9]+", b"/v1/x", False),
        ("/v[0-9]+", b"x/v1", False),
        ("/v[0-9]+", b"/V1", False),
        ("(?i)/v[0-9]+", b"/V1", True),
        ("a|b", b"a", True),
        ("a|b", b"ab", False),
        ("", b"", True),
        (".*", b"", True),
        (".*", b"a\nb\r\n\0", True),
        (".*", b"\xff\xc3\xa9", True),
        ("..", b"\xc3\xa9", True),  # a byte each
        (r"\d+", b"12", True),
        (r"[^\s]+", b"a b", False),
    ],
)
def test_the_whole_text_has_to_match(pattern: str, text: bytes, matches: bool) -> None:
    assert compile_pattern(pattern).matches(text) is matches
    assert compile_pattern(pattern).text == pattern


@pytest.mark.parametrize(
    ("pattern", "reason", "blamed"),
    [
        ("/a(b", "missing )", "/a(b"),
        ("/a)b", "unexpected )", "/a)b"),
        ("a[z-a]b", "invalid character class range", "z-a"),
        ("a(?=b)", "invalid perl operator", "(?="),
        (r"(a)\1", "invalid escape sequence", r"\1"),
        ("a**", "bad repetition operator", "**"),
        ("(a{1000}){1000}", "invalid repetition size", "{1000}"),
        ("caf\u00e9x", "it holds a character outside of printable ASCII", "\u00e9"),
        ("a\nb", "it holds a character outside of printable ASCII", "\n"),
        ("\\", "trailing \\", "\\"),
        ("a" * MAX_LENGTH + "bc", f"it has more than {MAX_LENGTH} characters", "bc"),
        (
            "[ab]{990}[cd]{20}",
            "it is too large: 1,014 instructions, at most 1,000 are allowed",
            "[ab]{990}[cd]{20}",
        ),
    ],
)
def test_what_is_wrong_and_where(pattern: str, reason: str, blamed: str) -> None:
    with pytest.raises(PatternError) as caught:
        compile_pattern(pattern)
    error = caught.value
    assert (error.reason, str(error)) == (reason, reason)
    assert pattern[error.start : error.end] == blamed


def test_a_pattern_of_the_largest_size_is_taken() -> None:
    assert compile_pattern(f"a{{{MAX_PROGRAM - 10}}}").matches(b"a" * (MAX_PROGRAM - 10))


def test_nothing_backtracks() -> None:
    """Exponential or quadratic where an engine tries one way after the other."""
    text = b"a" * 30_000
    for pattern in ("(a*)*b", "(a|aa)+b", "(a|a?)+b", ".*.*.*.*=.*", "(x+x+)+y"):
        assert not compile_pattern(pattern).matches(text)
