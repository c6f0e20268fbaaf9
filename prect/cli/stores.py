"""Commands on what is stored: export-nifti, remove, gc."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from prect.cli.console import (
    DEFAULT_WORKSPACE,
    ExitCode,
    JsonOption,
    WorkspaceOption,
    console,
    emit_json,
    human_bytes,
    interruptible,
    progress_bar,
)

if TYPE_CHECKING:
    from prect.cache.upkeep.export import NiftiExport
    from prect.cache.upkeep.leftovers import Leftover, Unfinished
    from prect.cache.upkeep.removal import Counts, Removal, Scope
    from prect.workspace import Workspace


def export_nifti(
    case: Annotated[
        str,
        typer.Argument(
            metavar="CASE",
            help="Case id, DATASET/CASE, the path of the foreign file as ingest lists it "
            "(DATASET:PATH where several data sets have it), or the path of a store.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .nii or .nii.gz.")],
    level: Annotated[
        int, typer.Option(min=0, help="Resolution level: 0 is the finest, each next one half.")
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Write a stored volume as NIfTI: int16 HU, RAS millimetres, where the scanner had it."""
    from prect.cache.upkeep import export
    from prect.workspace import Workspace

    store = export.find_store(Workspace(workspace), case)
    write = export.plan_export if dry_run else export.export_nifti
    with interruptible("nothing was written"):
        result = write(store, out, level=level, force=force)
    if json:
        emit_json(_export_document(result, dry_run=dry_run))
        return
    shape = " x ".join(str(n) for n in result.shape)
    spacing = " x ".join(f"{mm:g}" for mm in result.spacing)
    verb = "would be written" if dry_run else "written"
    console.print(f"{result.dataset}/{result.case}, level {level}: {shape} voxels of {spacing} mm")
    console.print(f"{verb} to {out} (x, y, z in RAS; {result.intensity})")


def _export_document(result: NiftiExport, *, dry_run: bool) -> dict[str, Any]:
    document = {**asdict(result), "affine": result.affine.tolist(), "dry_run": dry_run}
    return document | {"path": str(result.path), "store": str(result.store)}


def remove(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Data set of the workspace.")],
    cases: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CASE]...",
            help="Volumes to remove: case ids, or the paths of the foreign files as ingest lists "
            "them. Their rows go from all manifests.",
        ),
    ] = None,
    orphans: Annotated[
        bool,
        typer.Option(
            "--orphans",
            help="Remove stores whose source is no longer usable, or gone; source rows stay.",
        ),
    ] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Remove the whole data set: manifests, history and stores."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Delete volumes, their rows and their stores; foreign files and runs are not touched."""
    from prect.cache.upkeep.removal import Request, plan_removal
    from prect.workspace import Workspace

    place = Workspace(workspace)
    scope = _scope(cases, orphans=orphans, everything=everything)
    plan = plan_removal(place, Request(dataset, scope, tuple(cases or ())))
    if not json:
        _print_removal(plan)
        if plan.empty:
            console.print("nothing to remove")
    if dry_run:
        if json:
            emit_json(_removal_document(plan, after=None))
        return
    if not (yes or plan.empty):
        _confirm(plan)
    done, left = _remove(place, plan, quiet=json)
    if json:
        emit_json(_removal_document(done, after=left))
        return
    if not plan.empty:
        rows = f"{left.sources} source rows and {left.stores} stores"
        console.print(f"removed; {rows} of {dataset} stay")
    for path in done.kept:
        console.print(f"left, since prect did not make it: {path}")
    if done.taken.sources:
        console.print(
            "The foreign files stay where they are: the next ingest finds them again, unless they "
            "are deleted or the card's patterns exclude them."
        )


def _remove(place: Workspace, plan: Removal, *, quiet: bool) -> tuple[Removal, Counts]:
    from prect.cache.upkeep.removal import remove as remove_planned

    with (
        interruptible("run it again to finish"),
        progress_bar("store", quiet=quiet or plan.empty) as progress,
    ):
        task = progress.add_task("remove", total=plan.taken.stores + len(plan.aside))
        return remove_planned(place, plan, lambda: progress.advance(task))


def _scope(cases: list[str] | None, *, orphans: bool, everything: bool) -> Scope:
    from prect.cache.upkeep.removal import Scope

    chosen = {Scope.CASES: bool(cases), Scope.ORPHANS: orphans, Scope.ALL: everything}
    scopes = [scope for scope, wanted in chosen.items() if wanted]
    if len(scopes) != 1:
        raise typer.BadParameter("give exactly one of: CASE..., --orphans, --all")
    return scopes[0]


def _confirm(plan: Removal) -> None:
    """Ask; leave when the answer is no, or nobody can be asked."""
    from prect.errors import WorkspaceError

    if not sys.stdin.isatty():
        raise WorkspaceError("nothing was removed: give --yes, since nobody can be asked here")
    what = f"{len(plan.cases)} volumes of {plan.request.dataset} ({human_bytes(plan.bytes)})"
    if not typer.confirm(f"Remove {what}?", err=True):
        console.print("nothing was removed")
        raise typer.Exit(ExitCode.USER_ERROR)


def _print_removal(plan: Removal) -> None:
    request = plan.request
    table = Table(title=Text(f"{request.dataset}: what is removed"), title_justify="left")
    table.add_column("")
    for name in ("there are", "removed", "stay"):
        table.add_column(name, justify="right")
    names = {"sources": "source rows", "cached": "cache rows", "quarantined": "quarantined"}
    for key, before in asdict(plan.before).items():
        taken = getattr(plan.taken, key)
        row = (names.get(key, key), str(before), str(taken), str(before - taken))
        table.add_row(*row)
    console.print(table)
    console.print(f"{len(plan.cases)} volumes, {human_bytes(plan.bytes)} on disk")
    if plan.aside:
        console.print(f"hidden remains of them, or of earlier removals: {len(plan.aside)}")
    if plan.gone:
        console.print(f"removed before: {', '.join(plan.gone)}")
    for name, changes in plan.changes.items():
        told = ", ".join(f"{count} {change}" for change, count in changes.items())
        console.print(f"verdicts of volumes of {name} that stay: {told}")
    _print_runs(plan)


def _print_runs(plan: Removal) -> None:
    if not (plan.runs and plan.taken.cached):
        return
    names = ", ".join(run.name for run in plan.runs)
    console.print(
        f"runs made from {plan.request.dataset}, which stay: {names}; its manifest digest "
        "changes, so they cannot go on from a checkpoint"
    )
    if running := [run.name for run in plan.runs if run.running]:
        console.print(f"training now, ends with an error at a removed volume: {', '.join(running)}")


def _removal_document(removal: Removal, after: Counts | None) -> dict[str, Any]:
    document = asdict(removal)
    request, before = document.pop("request"), document["before"]
    planned = {key: before[key] - count for key, count in document["taken"].items()}
    return {
        "dataset": request["dataset"],
        "scope": request["scope"].value,
        "dry_run": after is None,
        **document,
        "aside": [str(path) for path in removal.aside],
        "after": planned if after is None else asdict(after),
    }


def gc(
    broken: Annotated[
        bool,
        typer.Option(
            "--broken", help="Also delete stores that `prect verify --repair` has set aside."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List, but delete nothing.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Clear what killed processes left: half-written stores, manifests and checkpoints."""
    from prect.cache.upkeep.leftovers import State, clear, find_leftovers, unfinished
    from prect.errors import WorkspaceError
    from prect.workspace import Workspace

    place = Workspace(workspace)
    if not place.root.is_dir():
        raise WorkspaceError(f"there is no workspace at {workspace}")
    found = find_leftovers(place, broken=broken)
    free = sum(entry.state is State.FREE for entry in found)
    if not dry_run:
        with (
            interruptible("run it again to clear the rest"),
            progress_bar("leftover", quiet=json or not free) as progress,
        ):
            task = progress.add_task("gc", total=free)
            found = clear(found, lambda: progress.advance(task))
    going_on = unfinished(place)
    if json:
        emit_json(_gc_document(workspace, found, going_on, dry_run=dry_run))
    else:
        _print_leftovers(place, found, going_on, dry_run=dry_run)


def _gc_document(
    workspace: str, found: list[Leftover], going_on: list[Unfinished], *, dry_run: bool
) -> dict[str, Any]:
    totals = {
        state: {
            "count": sum(entry.state == state for entry in found),
            "bytes": sum(entry.bytes for entry in found if entry.state == state),
        }
        for state in ("free", "cleared", "held", "kept")
    }
    return {
        "workspace": workspace,
        "dry_run": dry_run,
        "leftovers": [
            {
                "path": str(entry.path),
                "kind": entry.kind.value,
                "bytes": entry.bytes,
                "state": entry.state.value,
            }
            for entry in found
        ],
        "totals": totals,
        "unfinished": [{**asdict(entry), "path": str(entry.path)} for entry in going_on],
    }


def _print_leftovers(
    place: Workspace, found: list[Leftover], going_on: list[Unfinished], *, dry_run: bool
) -> None:
    words = {"free": "would be cleared", "held": "a process holds it", "kept": "kept (--broken)"}
    table = Table(title=Text(f"leftovers in {place.root}"), title_justify="left")
    for name in ("kind", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("path", overflow="fold")
    for entry in found:
        state = words.get(entry.state.value, entry.state.value)
        path = str(entry.path.relative_to(place.root))
        table.add_row(entry.kind.value, state, human_bytes(entry.bytes), Text(path))
    if found:
        console.print(table)
    for one in going_on:
        console.print(f"not ended: {one.path} ({human_bytes(one.bytes)}): {one.remedy}")
    done = [entry for entry in found if entry.state.value == ("free" if dry_run else "cleared")]
    verb = "would be cleared" if dry_run else "cleared"
    left = len(found) - len(done)
    console.print(
        f"{len(done)} {verb}, {human_bytes(sum(entry.bytes for entry in done))}"
        + (f"; {left} left alone" if left else "")
    )
