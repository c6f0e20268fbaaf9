"""Commands around weight files: export, weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from prect.cli.console import (
    DEFAULT_WORKSPACE,
    JsonOption,
    WorkspaceOption,
    console,
    emit_json,
    human_bytes,
)
from prect.cli.training import run_path

if TYPE_CHECKING:
    from prect.train.weights import Contents

_LONG_METADATA = {"config", "view"}
"""Entries that are JSON documents, for programs."""


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT", help="Run name or folder, or a checkpoint (step-*)."
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="File to write.")],
    everything: Annotated[
        bool,
        typer.Option(
            "--everything", help="Write projectors and teacher too, as backbone.* and objective.*."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the checkpoint; write no file.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the encoder's weights as safetensors, under the names that MONAI's networks use."""
    from prect.train.export import export_weights

    result = export_weights(
        run_path(source, workspace), target, everything=everything, force=force, dry_run=dry_run
    )
    written = "not written" if dry_run else "written"
    heads = " with heads" if everything else ""
    console.print(
        f"{result.tensors} tensors, {result.parameters:,} numbers of {result.network}{heads} at "
        f"step {result.step} {written} to {result.path}"
    )
    if as_json:
        emit_json(
            {
                "path": str(result.path),
                "checkpoint": str(result.checkpoint),
                "network": result.network,
                "step": result.step,
                "tensors": result.tensors,
                "parameters": result.parameters,
                "everything": everything,
                "dry_run": dry_run,
            }
        )


def weights(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Export or checkpoint of prect, released VoCo weights, or any safetensors or "
            "torch file.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Say what a weight file holds: which network, and which tensors of it. Runs no code in it."""
    from prect.train.weights import inspect_weights

    contents = inspect_weights(file)
    document = _document(contents)
    console.print(_table(document))
    if as_json:
        emit_json(document)


def _document(contents: Contents) -> dict[str, Any]:
    from prect.train.architectures import network_title
    from prect.train.networks import describe_encoder, parameter_count

    file, match = contents.file, contents.match
    encoder = describe_encoder(contents.network)
    return {
        "path": str(file.path),
        "format": file.format,
        "bytes": file.path.stat().st_size,
        "tensors": len(file.tensors),
        "network": network_title(contents.network),
        "settings": contents.network.model_dump(
            mode="json", include={"name", "feature_size", "blocks"}
        ),
        "embedding": encoder.embedding,
        "parameters": parameter_count(encoder),
        "prefix": match.prefix,
        "other_prefixes": list(match.others),
        "taken": list(match.taken),
        "left": list(match.left),
        "unexpected": list(match.unexpected),
        "metadata": file.metadata,
    }


def _table(document: dict[str, Any]) -> Table:
    """What a person wants to know of a file; lists as counts."""
    taken, left = len(document["taken"]), len(document["left"])
    rows = {
        "file": document["path"],
        "format": f"{document['format']}, {human_bytes(document['bytes'])}, "
        f"{document['tensors']} tensors",
        "network": f"{document['network']}: {document['parameters']:,} parameters, embedding of "
        f"{document['embedding']}",
        "taken": f"{taken} of the network's {taken + left} tensors",
    }
    if document["prefix"]:
        rows["prefix"] = document["prefix"]
    if document["other_prefixes"]:
        rows["also under"] = ", ".join(document["other_prefixes"])
    if left:
        rows["left"] = f"{left} are not in the file, first {document['left'][0]}"
    if document["unexpected"]:
        rows["unexpected"] = _groups(document["unexpected"])
    said = {k: v for k, v in document["metadata"].items() if k not in _LONG_METADATA}
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (rows | {f"says: {key}": value for key, value in said.items()}).items():
        table.add_row(Text(name), Text(value))
    return table


def _groups(names: list[str]) -> str:
    """Tensors counted by the first two parts of their names."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{group} ({count})" for group, count in counts.most_common(8)) + (
        f" and {len(counts) - 8} other groups" if len(counts) > 8 else ""
    )
