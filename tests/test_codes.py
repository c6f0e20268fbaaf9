"""Every reason code that can reach a manifest is in the table, and in docs/checks.md."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from prect.manifests.codes import CODES, Effect
from prect.manifests.limits import Limits

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "prect"
TABLE = PACKAGE / "manifests" / "codes"
FAMILIES = (
    "file|nifti|metaimage|nrrd|dicom|geometry|hu|content|volume|build|list|card|duplicate|leakage"
    "|selection|store"
)
CODE = re.compile(rf"(?:{FAMILIES})\.[a-z_0-9]+")
MAKERS = {"VolumeError", "passed", "failed", "quarantine", "Fault"}
SUFFIX = re.compile(r".*\.(?:py|yaml|json|jsonl|csv|txt|dcm|nii|gz|mha|parquet)")
"""Names of files such as ``list.json`` look like codes and are none."""


def literals(tree: ast.AST) -> Iterator[str]:
    """Strings that look like a code, wherever they stand."""
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and CODE.fullmatch(value) and not SUFFIX.fullmatch(value):
            yield value


def made(tree: ast.AST) -> Iterator[str]:
    """Codes given to what makes a finding, whatever they look like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else ""
            name = function.id if isinstance(function, ast.Name) else name
            places = (
                [node.args[1]] if name == "quarantine" and len(node.args) > 1 else node.args[:1]
            )
            for argument in places if name in MAKERS else ():
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value
                assert not isinstance(argument, ast.JoinedStr), (
                    f"line {argument.lineno}: a code that is put together cannot be found; "
                    "name each one"
                )


def used() -> dict[str, str]:
    """Codes in the package, the table apart, with the module that names them."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent != TABLE:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for code in (*literals(tree), *made(tree)):
                found.setdefault(code, str(path.relative_to(REPOSITORY)))
    return found


def test_the_walk_finds_codes() -> None:
    tree = ast.parse(
        'raise VolumeError("odd", "x")\nf = base.failed("hu.new", r)\n'
        'codes = {"a": "nifti.other", "b": "list.json"}\nquarantine(job, "strange", "reason")\n'
    )
    assert {*literals(tree), *made(tree)} == {"odd", "hu.new", "nifti.other", "strange"}
    with pytest.raises(AssertionError, match="cannot be found"):
        list(made(ast.parse('failed(f"{format}.truncated", "reason")')))


def test_every_code_in_use_is_in_the_table() -> None:
    unknown = {code: module for code, module in used().items() if code not in CODES}
    assert not unknown


def test_every_code_of_the_table_is_in_use() -> None:
    assert not sorted(set(CODES) - set(used()))


def test_names_are_unique_and_sentences_end() -> None:
    names = [
        node.args[0].value
        for path in TABLE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Code"
        and isinstance(node.args[0], ast.Constant)
    ]
    assert len(names) == len(set(names))
    for code in CODES.values():
        assert CODE.fullmatch(code.name)
        assert code.sentence[-1:] == "."
        assert not code.remedy or code.remedy[-1] == "."
        assert isinstance(code.effect, Effect)


def test_every_limit_belongs_to_a_code_and_is_a_limit() -> None:
    named = {limit for code in CODES.values() for limit in code.limits}
    assert named == set(Limits.model_fields)


def test_the_page_is_up_to_date() -> None:
    page = runpy.run_path(str(REPOSITORY / "docs" / "generate_checks.py"))["page"]()
    stored = (REPOSITORY / "docs" / "checks.md").read_text(encoding="utf-8")
    assert stored == page, "docs/checks.md is stale: run `make docs`"
    for code in CODES:
        assert f"| `{code}` |" in page
