"""A column of strings is the list that it was made of."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.manifests.columns import StringColumn

TEXT = st.text(max_size=6)


@given(st.lists(TEXT, max_size=12), st.integers(-14, 14))
@settings(max_examples=100, deadline=None)
def test_it_is_read_like_a_list(strings: list[str], index: int) -> None:
    column = StringColumn.of(strings)
    assert (len(column), list(column)) == (len(strings), strings)
    assert column[1:9:2] == strings[1:9:2]
    assert list(pickle.loads(pickle.dumps(column))) == strings
    if -len(strings) <= index < len(strings):
        assert column[index] == strings[index]
    else:
        with pytest.raises(IndexError, match="row"):
            column[index]


@given(st.lists(TEXT, max_size=12))
@settings(max_examples=100, deadline=None)
def test_joined_and_codes_are_those_of_the_list(strings: list[str]) -> None:
    column = StringColumn.of(strings)
    assert column.joined(b"\x1f") == "\x1f".join(strings).encode()
    codes, names = column.codes()
    assert [names[code] for code in codes] == strings
    assert names == tuple(dict.fromkeys(strings))


def test_a_pickled_column_is_little_more_than_its_text() -> None:
    column = StringColumn.of(f"case-{number:06d}" for number in range(10_000))
    assert len(pickle.dumps(column)) < 10_000 * (11 + 8) + 1000
