"""The command that looks after stores: verify."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from prect.cli.console import (
    DEFAULT_WORKSPACE,
    ExitCode,
    JsonOption,
    SchedulerOption,
    WorkersOption,
    WorkspaceOption,
    console,
    emit_json,
    graceful,
    human_bytes,
    interruptible,
    progress_bar,
)

if TYPE_CHECKING:
    from distributed import Client

    from prect.cache.checks.inventory import Listing
    from prect.cache.checks.repair import Repair
    from prect.cache.checks.verify import Broken, Checked, Verification
    from prect.workspace import Workspace

_STORES_TOLD = 50
"""Broken stores that are named on the terminal; with --json all are."""
_FAULTS_TOLD = 3
_FEW_QUICK = 500
_FEW_DEEP = 4
"""Stores that one process verifies before workers would have started."""


def verify(
    datasets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATASET", help="Data sets to verify; all that have a store when left out."
        ),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Read and decode every byte, not only documents, sizes and indexes."
        ),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Build what is broken again from its source; where that cannot be, set the store "
            "aside and quarantine its volume. Mend the manifest.",
        ),
    ] = False,
    rebuild_manifest: Annotated[
        bool,
        typer.Option("--rebuild-manifest", help="Write cache.parquet anew from the whole stores."),
    ] = False,
    stores: Annotated[
        list[Path] | None,
        typer.Option(
            "--store", metavar="PATH", help="Verify a store outside of any workspace; repeatable."
        ),
    ] = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verify, and say what would be repaired.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check every store, and the manifest against them; exit with status 1 if one is broken."""
    from prect.cache.checks.inventory import is_building, list_outside, list_stores
    from prect.errors import ManifestError
    from prect.manifests.cases import known_datasets
    from prect.workspace import Workspace

    place = Workspace(workspace)
    writes = repair or rebuild_manifest
    if stores and writes:
        raise typer.BadParameter("a store outside of a workspace can be verified, not repaired")
    with interruptible("run it again to go on"), ExitStack() as stack:
        if not stores and not known_datasets(place):  # a mistyped folder is not made
            raise ManifestError(
                f"there is no data set in {workspace}; run: prect ingest NAME --source DIR"
            )
        building = False
        if writes and not dry_run:
            stack.enter_context(place.lock("build-cache"))
        else:
            building = is_building(place)
        of_workspace = datasets or not stores
        listings = list_stores(place, datasets or (), building=building) if of_workspace else []
        listings += [list_outside(store) for store in stores or ()]
        client = None
        if scheduler or workers or _is_long(listings, deep=deep):
            client = _client(stack, listings, workers, scheduler)
        found = _verify(listings, client, deep=deep, collect=writes, quiet=json)
        repairs: list[Repair] = []
        stopped = False
        if writes and not dry_run:
            if repair and client is None and _has_to_build(found):
                client = _client(stack, listings, workers, scheduler)
            wanted = (repair, rebuild_manifest)
            repairs, stopped = _repair(found, place, client, wanted, quiet=json)
    facts = {"deep": deep, "repair": repair, "rebuild_manifest": rebuild_manifest}
    if json:
        emit_json(_document(place, facts | {"dry_run": dry_run}, found, repairs))
    else:
        _show(found, repairs, would_repair=repair and dry_run)
    if stopped:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if not all(part.sound for part in (repairs or found)):
        raise typer.Exit(ExitCode.USER_ERROR)


def _is_long(listings: Sequence[Listing], *, deep: bool) -> bool:
    """Whether verifying takes longer than starting workers."""
    stores = sum(len(listing.cases) for listing in listings)
    return stores > (_FEW_DEEP if deep else _FEW_QUICK)


def _has_to_build(found: Sequence[Verification]) -> bool:
    from prect.cache.checks.remedies import Remedy, remedy

    return any(
        remedy(broken, each.listing) is Remedy.REBUILD for each in found for broken in each.broken
    )


def _client(
    stack: ExitStack, listings: Sequence[Listing], workers: int | None, scheduler: str | None
) -> Client:
    """As many workers as there are stores for, and memory to build the largest volume."""
    from prect.cache.memory import default_workers
    from prect.cluster import cluster

    stores = sum(len(listing.cases) for listing in listings)
    fit = default_workers([each.expected.largest for each in listings if each.expected.largest])
    return stack.enter_context(cluster(max(1, min(workers or fit, stores)), scheduler))


def _verify(
    listings: Sequence[Listing], client: Client | None, *, deep: bool, collect: bool, quiet: bool
) -> list[Verification]:
    from prect.cache.checks.verify import verify as verify_stores

    total = sum(len(listing.cases) for listing in listings)
    with progress_bar("store", quiet=quiet or not total) as progress:
        task = progress.add_task("verify", total=total)
        begun, read, broken = time.monotonic(), 0, 0

        def on_batch(checked: Checked) -> None:
            nonlocal read, broken
            read += checked.bytes
            broken += len(checked.broken)
            rate = f" {human_bytes(read / (time.monotonic() - begun))}/s" if deep else ""
            note = f", {broken} broken" if broken else ""
            progress.update(task, advance=checked.stores, description=f"verify{rate}{note}")

        return verify_stores(listings, client, deep=deep, collect=collect, on_batch=on_batch)


def _repair(
    found: Sequence[Verification],
    workspace: Workspace,
    client: Client | None,
    wanted: tuple[bool, bool],
    *,
    quiet: bool,
) -> tuple[list[Repair], bool]:
    """Carry out --repair, --rebuild-manifest, or both; says whether it was stopped as well."""
    from prect.cache.checks.repair import rebuild_manifest
    from prect.cache.checks.repair import repair as repair_stores

    mend, rewrite = wanted
    if not mend:
        return [rebuild_manifest(each, workspace) for each in found], False
    total = sum(len(each.broken) for each in found)
    with (
        graceful("what is in flight") as stop,
        progress_bar("store", quiet=quiet or not total) as progress,
    ):
        task = progress.add_task("repair", total=total)

        def on_result() -> None:
            progress.advance(task)

        options: dict[str, Any] = {"rebuild_manifest": rewrite, "stop": stop}
        repairs = [
            repair_stores(each, workspace, client, on_result=on_result, **options) for each in found
        ]
        return repairs, stop()


def _counts(found: Verification, repaired: Repair | None) -> dict[str, int]:
    counts = {
        "checked": found.checked,
        "whole": found.whole,
        **{_key(kind.value): count for kind, count in found.kinds.items()},
    }
    if repaired is not None:
        results = {result.value: count for result, count in repaired.counts.items()}
        counts["repaired"] = results["repaired"]
        counts["quarantined"] = results["set aside"]
        counts["left"] = results["left as it is"]
    return counts | {
        "stale": found.stale,
        "not_yet_listed": found.not_yet_listed,
        "orphans": found.orphans,
        "half_written": found.half_written,
        "set_aside": found.set_aside,
        "bytes": found.bytes,
    }


def _key(words: str) -> str:
    return words.replace(" ", "_")


def _document(
    workspace: Workspace,
    facts: dict[str, bool],
    found: Sequence[Verification],
    repairs: Sequence[Repair],
) -> dict[str, Any]:
    parts = [_part(each, repairs[n] if repairs else None) for n, each in enumerate(found)]
    return {
        "workspace": str(workspace.root),
        **facts,
        "sound": all(part["sound"] for part in parts),
        "datasets": [part for part in parts if part["dataset"] is not None],
        "stores": [part for part in parts if part["dataset"] is None],
    }


def _part(found: Verification, repaired: Repair | None) -> dict[str, Any]:
    from prect.cache.checks.remedies import Result, remedy

    listing = found.listing
    broken = []
    for each in found.broken:
        entry: dict[str, Any] = {
            "case": each.case,
            "store": str(each.store),
            "kind": each.kind.value,
            "remedy": remedy(each, listing).value,
            "faults": [
                {
                    "code": fault.code,
                    "file": fault.file,
                    "level": fault.level,
                    "chunk": fault.chunk,
                    "detail": fault.detail,
                }
                for fault in each.faults
            ],
            "fault_count": each.count,
        }
        if repaired is not None:
            entry["result"] = repaired.results.get(each.case, Result.LEFT).value
            entry["reason"] = repaired.reasons.get(each.case)
        broken.append(entry)
    return {
        "dataset": listing.dataset,
        "manifest": listing.manifest.value,
        "sound": (repaired or found).sound,
        **_counts(found, repaired),
        "broken": broken,
    }


def _show(found: Sequence[Verification], repairs: Sequence[Repair], *, would_repair: bool) -> None:
    parts = [_counts(each, repairs[n] if repairs else None) for n, each in enumerate(found)]
    table = Table(title="checked = whole + the broken ones", title_justify="left")
    table.add_column("")
    for each in found:
        outside = each.listing.outside
        name = each.listing.dataset or (outside.name if outside else "")
        table.add_column(name, justify="right", overflow="fold")
    for row in parts[0]:
        values = [part[row] for part in parts]
        if any(values) or row in ("checked", "whole"):
            shown = [human_bytes(v) if row == "bytes" else str(v) for v in values]
            table.add_row(
                "bytes of whole ones" if row == "bytes" else row.replace("_", " "), *shown
            )
    console.print(table)
    for number, each in enumerate(found):
        _show_broken(each, repairs[number] if repairs else None, would_repair=would_repair)
    _show_remedies(found, repairs)


def _show_broken(found: Verification, repaired: Repair | None, *, would_repair: bool) -> None:
    from prect.cache.checks.inventory import Manifest
    from prect.cache.checks.remedies import Result, remedy

    listing = found.listing
    for each in found.broken[:_STORES_TOLD]:
        name = f"{listing.dataset}/{each.case}" if listing.dataset else str(each.store)
        end = ""
        if repaired is not None:
            reason = repaired.reasons.get(each.case)
            end = f" [{repaired.results.get(each.case, Result.LEFT).value}{_because(reason)}]"
        elif would_repair:
            end = f" [would be: {remedy(each, listing).value}]"
        console.print(f"{each.kind.value}: {name}{end}")
        _show_faults(each)
    if len(found.broken) > _STORES_TOLD:
        console.print(f"and {len(found.broken) - _STORES_TOLD} more; --json names all of them")
    if found.not_yet_listed:
        console.print(
            f"{listing.dataset}: a build is at work; {found.not_yet_listed} whole stores are not "
            "yet listed"
        )
    written = (repaired is not None and repaired.manifest_written) or found.manifest_sound
    if listing.manifest in (Manifest.MISSING, Manifest.DAMAGED) and not written:
        console.print(f"{listing.dataset}: the cache manifest is {listing.manifest.value}")


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def _show_faults(broken: Broken) -> None:
    for fault in broken.faults[:_FAULTS_TOLD]:
        console.print(f"  {fault}")
    if broken.count > _FAULTS_TOLD:
        console.print(f"  and {broken.count - _FAULTS_TOLD} more faults")


def _show_remedies(found: Sequence[Verification], repairs: Sequence[Repair]) -> None:
    """What can be done about what is still broken, once for each kind of fault."""
    from prect.manifests.codes import CODES

    left = [
        broken
        for number, each in enumerate(found)
        for broken in each.broken
        if not repairs or broken.case not in repairs[number].results
    ]
    codes = sorted({code for broken in left for code in broken.codes})
    for remedy in dict.fromkeys(CODES[code].remedy for code in codes):
        console.print(remedy.replace("`", ""))
    if not all(part.sound for part in (repairs or found)) and not left and not repairs:
        console.print("prect verify --rebuild-manifest writes the cache manifest from the stores")
    if any(repaired.quarantine for repaired in repairs):
        console.print(
            "a volume that was quarantined is built again by prect build-cache when its source is "
            "there; prect gc lists what was set aside"
        )
