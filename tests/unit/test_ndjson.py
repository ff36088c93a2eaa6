"""`gateway.ndjson`: numbered lines whatever the chunks are, and never more than the limit held."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.ndjson import Lines


def cut(lines: Lines, chunks: list[bytes]) -> list[tuple[int, bytes | None]]:
    return [line for chunk in chunks for line in lines.feed(chunk)] + list(lines.end())


@given(st.lists(st.text("ab \r\n", max_size=9).map(str.encode)), st.integers(1, 6))
def test_lines_do_not_depend_on_the_chunks(chunks: list[bytes], limit: int) -> None:
    expected: list[tuple[int, bytes | None]] = []
    for number, line in enumerate(b"".join(chunks).split(b"\n"), 1):
        if len(line) > limit:
            expected.append((number, None))
        elif line.strip():
            expected.append((number, line))
    assert cut(Lines(limit), chunks) == expected


def test_an_overlong_line_is_told_at_once_and_not_held() -> None:
    lines = Lines(1000)
    assert list(lines.feed(b"{}\n" + b"x" * 900)) == [(1, b"{}")]
    assert list(lines.feed(b"x" * 900)) == [(2, None)]
    for _ in range(100):
        assert list(lines.feed(b"x" * 900)) == []
        assert not lines._held
    assert list(lines.feed(b"\n\n{}\n")) == [(4, b"{}")]
    assert list(lines.end()) == []
