"""Columns of strings held as two arrays, for tables of a hundred thousand rows and more.

A Python string costs fifty bytes beside its text, and a list of them is copied one by one when
it goes to another process; two arrays are copied whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class StringColumn(Sequence[str]):
    """N strings, read like a list of them."""

    offsets: NDArray[np.int64]
    """(N + 1,) where each string begins in ``text``, and where the last one ends."""
    text: NDArray[np.uint8]
    """UTF-8 of all strings, one after the other."""

    @classmethod
    def of(cls, strings: Iterable[str]) -> StringColumn:
        """The column of some strings."""
        encoded = [string.encode() for string in strings]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(ends, np.frombuffer(b"".join(encoded), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = index % len(self)
        return self.text[self.offsets[row] : self.offsets[row + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        text = self.text.tobytes()
        return (text[begin:end].decode() for begin, end in pairwise(self.offsets.tolist()))

    def joined(self, separator: bytes) -> bytes:
        """All strings in order with ``separator``, one byte, between them."""
        count = len(self)
        if count == 0:
            return b""
        # Each byte of text moves on by the separators that come before it.
        row = np.repeat(np.arange(count), np.diff(self.offsets))
        whole = np.full(len(self.text) + count - 1, ord(separator), dtype=np.uint8)
        whole[np.arange(len(self.text)) + row] = self.text
        return whole.tobytes()

    def codes(self) -> tuple[NDArray[np.int32], tuple[str, ...]]:
        """(N,) position of each string among the distinct ones, and those as they first come."""
        known: dict[str, int] = {}
        codes = np.empty(len(self), dtype=np.int32)
        begins = np.flatnonzero(self._differs_from_before())
        for begin, end in pairwise([*begins.tolist(), len(self)]):
            codes[begin:end] = known.setdefault(self[begin], len(known))
        return codes, tuple(known)

    def _differs_from_before(self) -> NDArray[np.bool_]:
        """(N,) whether a string is another than the one before it; True for the first."""
        lengths = np.diff(self.offsets)
        differs = np.ones(len(self), dtype=np.bool_)
        differs[1:] = lengths[1:] != lengths[:-1]
        # Of strings as long as the one before, each byte is compared with that a length earlier.
        row = np.repeat(np.arange(len(self)), np.where(differs, 0, lengths))
        at = np.flatnonzero(np.repeat(~differs, lengths))
        differs[row[self.text[at] != self.text[at - lengths[row]]]] = True
        return differs
