"""The document as tables and as a chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prect.benchmark.chart import draw
from prect.benchmark.goals import goals
from prect.benchmark.tables import TextTable, tables
from tests.benchmark.documents import MS, document


@pytest.fixture
def told() -> dict[str, Any]:
    whole = document()
    whole["goals"] = [goal.to_json() for goal in goals(whole)]
    return whole


def titled(all_of_them: list[TextTable], start: str) -> TextTable:
    (found,) = [table for table in all_of_them if table.title.startswith(start)]
    return found


def test_times_are_medians_and_ratios_to_prect(told: dict[str, Any]) -> None:
    warm = {
        row[0]: row[1:]
        for row in titled(
            tables(told), "Warm, files in the page cache and open: ms a box, median"
        ).rows
    }
    assert set(warm) == {f"the {name}" for name in MS}
    assert warm["the prect"] == ("2.00",) * 4
    assert warm["the tensorstore"] == ("2.50 1.2x",) * 4


def test_what_was_not_measured_is_said_and_not_left_out(told: dict[str, Any]) -> None:
    for arm in told["arms"]:
        if arm["name"] == "blosc2":
            arm |= {"status": "not installed: pip install 'prect[bench]'", "reads": {}}
    warm = titled(tables(told), "Warm, files in the page cache and open: ms a box, median")
    (row,) = [row for row in warm.rows if row[0] == "the blosc2"]
    assert row[1] == "not installed: pip install 'prect[bench]'"
    starved = titled(tables(told), "Short of memory")
    assert "not allowed here" in [row[0] for row in starved.rows]


def test_reads_that_were_not_cold_are_counted_in_the_table(told: dict[str, Any]) -> None:
    told["arms"][0]["reads_not_cold"] = 2
    rows = titled(tables(told), "Cold: MB read from the device").rows
    assert rows[0][0] == "the prect (2 reads were not cold and are left out)"
    assert rows[1][0] == "the prect-window"


def test_verdicts_and_loaders(told: dict[str, Any]) -> None:
    verdicts = {row[3] for row in titled(tables(told), "Goals").rows}
    assert verdicts == {"pass", "falls short"}
    rows = titled(tables(told), "Loaders").rows
    assert rows[0] == ("prect", "0", "200", "5.00", "30.2")
    assert "no word" in rows[1]


def test_every_row_has_a_cell_for_every_column(told: dict[str, Any]) -> None:
    for table in tables(told):
        assert table.rows
        assert all(len(row) == len(table.header) for row in table.rows), table.title
        lines = table.markdown().splitlines()
        assert lines[0] == f"**{table.title}**"
        assert len({line.count("|") for line in lines[2:]}) == 1


def test_the_chart_is_a_picture(told: dict[str, Any], tmp_path: Path) -> None:
    draw(told, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    for arm in told["arms"]:
        arm["reads"].pop("cold", None)
    draw(told, tmp_path / "warm.png")
    assert (tmp_path / "warm.png").stat().st_size > 10_000
