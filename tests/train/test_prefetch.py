"""What lies ready is bounded in bytes, by the largest region that a run can meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prect.errors import ConfigError
from prect.manifests.columns import StringColumn
from prect.train.config import TrainConfig, ViewConfig, load_config
from prect.train.dataset import StoreNames
from prect.train.prefetch import PrefetchPlan, plan_prefetch, region_bytes, region_voxels
from prect.train.sampling import Sampler, Sources
from prect.train.views import GeometryTable
from prect.workspace import Workspace

MakeConfig = Any
MIB = 2**20


def table(shapes: Any, spacings: Any, levels: Any) -> GeometryTable:
    return GeometryTable(
        np.array(shapes, dtype=np.int32), np.array(spacings), np.array(levels, dtype=np.int32)
    )


VOLUME = st.tuples(
    st.tuples(*[st.integers(1, 900)] * 3),
    st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 1.25, 1.5, 3.0, 5.0])] * 3),
    st.integers(1, 4),
)
VIEW = st.one_of(
    st.builds(ViewConfig, grid=st.tuples(*[st.integers(8, 384)] * 3)),
    st.builds(
        ViewConfig,
        kind=st.just("box"),
        grid=st.tuples(*[st.integers(8, 384)] * 3),
        spacing=st.tuples(*[st.sampled_from([0.8, 1.25, 1.5, 3.0, 5.0])] * 3),
    ),
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(volumes=st.lists(VOLUME, min_size=1, max_size=4), view=VIEW)
def test_sizes_of_regions_are_those_of_the_samples(
    make_config: MakeConfig, volumes: list[Any], view: ViewConfig
) -> None:
    geometry = table(*zip(*volumes, strict=True))
    base = make_config()
    config = TrainConfig.model_construct(**{**dict(base), "view": view})
    sampler = Sampler(config, "d", np.arange(len(volumes)), geometry)
    found = {s.row: np.prod(s.region.shape) for s in map(sampler.sample, range(len(volumes)))}
    assert region_voxels(view, geometry).tolist() == [found[row] for row in range(len(volumes))]


def plan(make_config: MakeConfig, pin_memory: bool = False, **data: Any) -> PrefetchPlan:
    """Batches of two, each volume of 2 MiB."""
    geometry = table([(32, 32, 32), (64, 128, 128)], [(1, 1, 1)] * 2, [1, 1])
    sources = Sources(("toy",), np.zeros(2, np.int32))
    names = StoreNames(Workspace("w"), sources, StringColumn.of(["small", "large"]))
    return plan_prefetch(make_config(data=data), geometry, names, pin_memory=pin_memory)


@pytest.mark.parametrize(
    ("mib", "workers", "pins", "expected"),
    [
        (512, 2, False, (2, 4, False)),
        (32, 2, False, (2, 3, False)),  # each holds a batch more: the one in use
        (31, 2, False, (2, 2, False)),
        (32, 4, False, (4, 1, False)),
        (31, 4, False, (3, 1, False)),
        (8, 4, False, (1, 1, False)),
        (4, 0, False, (0, 0, False)),
        (80, 2, True, (2, 4, True)),  # 10 read, 10 copied
        (79, 2, True, (2, 3, True)),
        (20, 2, True, (1, 1, True)),  # 2 read, 3 copied
        (19, 2, True, (2, 1, False)),
    ],
)
def test_fewer_batches_then_fewer_workers_then_no_copies(
    make_config: MakeConfig, mib: int, workers: int, pins: bool, expected: tuple[int, int, bool]
) -> None:
    found = plan(make_config, pins, prefetch_mib=mib, workers=workers)
    assert (found.workers, found.batches, found.pinned) == expected
    assert found.batch_bytes == 4 * MIB
    assert found.held_bytes <= mib * MIB
    if workers:
        assert f"{expected[0]} reading processes" in found.describe()
        assert f" {found.held_bytes // MIB} MiB of regions at most" in found.describe()
        assert ("would not fit" in found.describe()) is (expected[0] < workers)
        assert ("copies included" in found.describe()) is expected[2]


def test_page_locked_memory_is_given_out_in_powers_of_two() -> None:
    found = PrefetchPlan(workers=1, batches=1, batch_bytes=5 * MIB, wanted=1, pinned=True)
    assert found.held_bytes == (2 * 5 + 3 * 8) * MIB


def test_a_batch_that_does_not_fit_names_the_remedy(make_config: MakeConfig) -> None:
    remedy = r"region of toy/large.* 2 MiB.*data\.prefetch_mib=8 at least.*data\.workers=0"
    for pins in (False, True):
        with pytest.raises(ConfigError, match=remedy):
            plan(make_config, pins, prefetch_mib=7, workers=2)
    assert plan(make_config, prefetch_mib=3, workers=0).held_bytes == 0


def test_each_data_set_counts_with_its_own_view() -> None:
    config = load_config(
        "voco-b",
        overrides=["data.datasets=['a','b']", "data.recipes={a='v2-abdomen', b='v2-chest'}"],
    )
    geometry = table([(400, 300, 300)] * 2, [(1.5, 1.5, 1.5)] * 2, [3, 3])
    sources = Sources(("a", "b"), np.array([0, 1], dtype=np.int32))
    # Chest: 192 x 192 x 64 voxels of 1.25 x 1.25 x 5 mm out of a store of 1.5 mm.
    expected = [2 * 192 * 192 * 64, 2 * 160 * 160 * 213]
    assert region_bytes(config, geometry, sources).tolist() == expected
