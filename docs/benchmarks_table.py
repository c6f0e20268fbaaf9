"""Put the figures of a run of ``prect benchmark-io --json FILE`` into ``docs/benchmarks.md``.

Run as ``python docs/benchmarks_table.py FILE``; what stood between the two marks is replaced.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prect.benchmark.tables import tables

PAGE = Path(__file__).with_name("benchmarks.md")
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def figures(document: Mapping[str, Any]) -> str:
    """The machine, the volumes and all tables of a run as Markdown."""
    machine, settings = document["machine"], document["settings"]
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if found)
    volumes = [
        f"| {each['name']} | {_by(each['shape'])} | {_by(each['full_shape'])} "
        f"| {sum(each['level_bytes']) / 1e6:.1f} |"
        for each in document["volumes"]
    ]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}.",
        f"Python {machine['python']}, prect {document['prect']} with its {document['decoder']}, "
        f"{versions}.",
        f"{settings['rounds']} boxes of each view and volume warm, {settings['cold_rounds']} cold.",
        "",
        "| volume | voxels stored (z, y, x) | whole field of view | MB, HU, all levels |",
        "|---|---|---|---|",
        *volumes,
        "",
    ]
    return "\n".join([*lines, *(table.markdown() for table in tables(document))])


def with_figures(page: str, document: Mapping[str, Any]) -> str:
    """A page with the figures of a run between its marks.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} followed by {END}")
    return f"{before}{BEGIN}\n\n{figures(document).rstrip()}\n\n{END}{after}"


def _by(shape: list[int]) -> str:
    return " x ".join(str(n) for n in shape)


if __name__ == "__main__":
    (run,) = sys.argv[1:]
    told = json.loads(Path(run).read_text(encoding="utf-8"))
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8"), told), encoding="utf-8")
