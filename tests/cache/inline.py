"""A Dask client whose only worker is a thread of this process, so that a test can reach into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, LocalCluster


@contextmanager
def inline_client() -> Iterator[Client]:
    """Starts in a fraction of a second, and sees what a test has patched."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as local,
        Client(local) as client,
    ):
        yield client
