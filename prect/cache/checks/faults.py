"""What is wrong with a store, and where."""

from __future__ import annotations

from dataclasses import dataclass

from prect.units import Triple


@dataclass(frozen=True)
class Fault:
    """One thing that a store must not have."""

    code: str
    """Reason code ``store.detail``; see `prect.manifests.codes.stores`."""
    detail: str
    """One sentence with the value found and what was expected."""
    file: str = ""
    """Path of the file inside the store; empty when the store as a whole is concerned."""
    level: int | None = None
    """Resolution level, 0 is the finest."""
    chunk: Triple | None = None
    """Index of the inner chunk, (z, y, x)."""

    @property
    def place(self) -> str:
        """``0/c.0.0.0, chunk (1, 0, 2)``, or as much of it as there is."""
        chunk = "" if self.chunk is None else f"chunk {self.chunk}"
        return ", ".join(part for part in (self.file, chunk) if part)

    def __str__(self) -> str:
        where = f" ({self.place})" if self.place else ""
        return f"{self.code}{where}: {self.detail}"
