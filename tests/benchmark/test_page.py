"""The page of the documentation takes the figures of a run, and no figure is typed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from prect.benchmark.arms import arms
from tests.benchmark.documents import document

PROGRAM = Path(__file__).resolve().parents[2] / "docs" / "benchmarks_table.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = spec_from_file_location("benchmarks_table", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_go_between_the_marks_and_replace_what_was_there(program: ModuleType) -> None:
    page = f"before\n{program.BEGIN}\nold figures\n{program.END}\nafter\n"
    once = program.with_figures(page, document())
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old figures" not in once
    assert "| the tensorstore | 2.50 1.2x |" in once
    assert "prect 0.1 with its CompiledDecoder, " in once
    assert program.with_figures(once, document()) == once


def test_a_page_without_marks_is_refused(program: ModuleType) -> None:
    with pytest.raises(ValueError, match="no <!-- figures -->"):
        program.with_figures("nothing", document())


def test_the_page_has_marks_and_names_every_reader(program: ModuleType) -> None:
    page = program.PAGE.read_text(encoding="utf-8")
    assert page.index(program.BEGIN) < page.index(program.END)
    described = page[: page.index(program.BEGIN)]
    for arm in arms().values():
        assert f"| {arm.title.split(',')[0].removesuffix(' .b2nd as nnU-Net v2')}" in described
        assert not arm.limit or f"| {arm.title} |" in described


def test_the_program_needs_a_file() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, check=False)
    assert done.returncode == 1
