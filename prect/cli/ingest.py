"""The command that finds and judges volumes."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from prect.cli.console import (
    DEFAULT_WORKSPACE,
    ExitCode,
    JsonOption,
    SchedulerOption,
    StrictOption,
    WorkersOption,
    WorkspaceOption,
    console,
    count_table,
    emit_json,
    interruptible,
    progress_bar,
)

if TYPE_CHECKING:
    from prect.cluster import Workers
    from prect.ingest.explain import Explanation
    from prect.ingest.survey import Survey
    from prect.manifests.cards import Card
    from prect.workspace import Workspace


@dataclass(frozen=True)
class _Options:
    """What holds for every data set of one call."""

    place: Workspace
    salt: str | None
    rehash: bool
    workers: Workers
    replace: bool
    dry_run: bool
    json: bool


@dataclass
class _Everything:
    """What became of the sources of one call."""

    found: list[Survey] = field(default_factory=list)
    absent: list[Card] = field(default_factory=list)
    """Cards of the catalogue whose folder is not there."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why an ingest failed, by name."""


def ingest(
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="A card of the catalogue (see `prect datasets`), the path of a card of your own "
            "(.yaml), or any name: then every image under the folder is a candidate."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with NIfTI, MetaImage, NRRD or DICOM files."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every source of the catalogue that lies under --root.")
    ] = False,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --all: folder of the sources' folders.")
    ] = None,
    list_file: Annotated[
        Path | None,
        typer.Option(
            "--list",
            metavar="FILE",
            help="Take exactly the volumes of this list: Decathlon-style JSON, or text with one "
            "path a line. Its splits are kept.",
        ),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    salt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Secret that case, patient and series ids are hashed with; made at random for "
            "a new workspace. Give the same one to get the same ids elsewhere.",
        ),
    ] = None,
    exclude_benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SPLIT]",
            help="Keep this ingested test set, and copies of its volumes in every other data set, "
            "out of pre-training; holds until --include-benchmark. May be repeated.",
        ),
    ] = None,
    include_benchmark: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:SPLIT]", help="Undo --exclude-benchmark. May be repeated."),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="CASE",
            help="Judge nothing new; print every check of this case (its id, or its path).",
        ),
    ] = None,
    rehash: Annotated[
        bool,
        typer.Option(
            "--rehash",
            help="Compare contents, not sizes and times, to tell which files are unchanged.",
        ),
    ] = False,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Allow a manifest that holds none of the volumes of the one before."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge, but write nothing.")] = False,
    strict: StrictOption = False,
    json: JsonOption = False,
) -> None:
    """Find and judge every volume of a data set; write the source manifest."""
    from prect.cluster import Workers
    from prect.workspace import Workspace

    place = Workspace(workspace)
    if explain is not None:
        _explain(place, _one(dataset, "--explain"), explain, as_json=json)
        return
    added, dropped = exclude_benchmark or [], include_benchmark or []
    if every and (root is None or dataset or source or list_file):
        raise typer.BadParameter("--all takes --root DIR, and no DATASET, --source or --list")
    if not every and source is None and (dataset or not (added or dropped)):
        raise typer.BadParameter(
            "give DATASET and --source DIR, or --all and --root DIR (see prect ingest --help)"
        )
    if dry_run and (added or dropped):
        raise typer.BadParameter("benchmarks are set for the workspace; leave --dry-run out")
    if dropped:
        _include(dropped, place)
    everything = _Everything()
    with Workers(workers or os.cpu_count() or 1, scheduler) as processes:
        options = _Options(place, salt, rehash, processes, replace, dry_run, json)
        if root is not None and every:
            everything = _all(root, options)
        elif source is not None:
            card = _card(_one(dataset, "--source"), place)
            everything.found.append(_ingest(card, source, list_file, options))
    kept_out = _exclude(added, everything, options) if added or dropped else None
    _show(everything, kept_out, options, as_set=every)
    if everything.failed:
        raise typer.Exit(ExitCode.USER_ERROR)
    unread = sum(entry["unread"] for entry in kept_out or ())
    if strict and (unread or any(survey.usable < len(survey.table) for survey in everything.found)):
        raise typer.Exit(ExitCode.QUARANTINED)


def _one(dataset: str | None, option: str) -> str:
    if dataset is None:
        raise typer.BadParameter(f"{option} needs the name of the data set")
    return dataset


def _card(dataset: str, place: Workspace) -> Card:
    """The card of that path or name; that of the last ingest, or one that takes everything."""
    from prect.manifests.cards import find_card, generic_card, load_card, near_names

    if dataset.endswith((".yaml", ".yml")):
        return load_card(Path(dataset))
    card = find_card(dataset)
    if card is not None:
        return card
    if dataset in place.datasets():
        return load_card(place.card(dataset))
    near = near_names(dataset)
    hint = f" (near: {', '.join(near)})" if near else ""
    console.print(f"no card is named {dataset!r}{hint}: every image is taken as a candidate")
    return generic_card(dataset)


def _all(root: Path, options: _Options) -> _Everything:
    """Ingest every source of the catalogue that is there; one that fails does not stop the rest."""
    from prect.errors import PrectError, WorkspaceError
    from prect.manifests.cards import catalogue

    if not root.is_dir():
        raise WorkspaceError(f"{root} is not a folder; --root must name one that exists")
    everything = _Everything()
    for card in catalogue():
        folder = card.folder_under(root)
        if folder is None:
            everything.absent.append(card)
            continue
        try:
            everything.found.append(_ingest(card, folder, None, options))
        except (PrectError, OSError) as error:
            everything.failed[card.name] = str(error)
    return everything


def _ingest(card: Card, source: Path, list_file: Path | None, options: _Options) -> Survey:
    from prect.ingest.survey import survey
    from prect.workspace import check_name

    lock = f"ingest-{check_name(card.name, 'dataset')}"
    kept = "nothing was written" if options.dry_run else "what was judged is kept, start it again"
    with (
        interruptible(kept),
        nullcontext() if options.dry_run else options.place.lock(lock),
        progress_bar("volume", quiet=options.json) as progress,
    ):
        task = progress.add_task(f"ingest {card.name}", total=None)
        found = survey(
            card,
            source,
            options.place,
            salt=options.salt,
            list_file=list_file,
            rehash=options.rehash,
            workers=options.workers,
            write=not options.dry_run,
            replace_all=options.replace,
            on_progress=lambda count: progress.advance(task, count),
        )
        progress.update(task, total=len(found.table), completed=len(found.table))
    return found


def _include(names: list[str], place: Workspace) -> None:
    """Let test sets take part in pre-training again, before anything is judged by that."""
    from prect.errors import ManifestError
    from prect.manifests.commit import excluded_benchmarks, set_excluded_benchmarks

    before = set(excluded_benchmarks(place))
    gone = {_benchmark(name, place) for name in names}
    if gone - before:
        known = ", ".join(sorted(before)) or "none"
        raise ManifestError(f"{', '.join(sorted(gone - before))} is not excluded (are: {known})")
    set_excluded_benchmarks(place, sorted(before - gone))


def _exclude(names: list[str], everything: _Everything, options: _Options) -> list[dict[str, Any]]:
    """Keep test sets out; what that takes, and the surveys with the verdicts that follow."""
    from dataclasses import replace

    from prect.manifests.commit import benchmark_summary, set_excluded_benchmarks
    from prect.manifests.commit import excluded_benchmarks as excluded
    from prect.manifests.sources import read_source_table

    place = options.place
    added = {_benchmark(name, place) for name in names}
    set_excluded_benchmarks(place, sorted(set(excluded(place)) | added))
    everything.found = [
        replace(survey, table=read_source_table(place.sources(survey.dataset)))
        for survey in everything.found
    ]
    return benchmark_summary(place)


def _benchmark(text: str, place: Workspace) -> str:
    """``NAME[:SPLIT]`` with the name that the data set has in the workspace."""
    from prect.manifests.cards import find_card

    name, _, split = text.partition(":")
    card = find_card(name)
    if card is not None and name not in place.datasets():
        name = card.name
    return f"{name}:{split}" if split else name


def _show(
    everything: _Everything,
    kept_out: list[dict[str, Any]] | None,
    options: _Options,
    *,
    as_set: bool,
) -> None:
    if options.json:
        _emit(everything, kept_out, options, as_set=as_set)
        return
    for survey in everything.found:
        _print_survey(survey, options)
    if as_set:
        console.print(_overview(everything.found))
    for card in everything.absent:
        folders = " or ".join(_folders(card)) or "its folder is not known; give --source"
        console.print(f"not there: {card.name} ({folders})")
    for name, error in everything.failed.items():
        console.print(f"failed: {name}: {error}")
    if kept_out == []:
        console.print("no test set is kept out of pre-training")
    for entry in kept_out or ():
        console.print(
            f"kept out of pre-training: {entry['name']}, {entry['volumes']} volumes, and "
            f"{entry['copies']} copies of them"
        )
        if entry["unread"]:
            console.print(
                f"  copies of {entry['unread']} of its volumes cannot be found, "
                "since these could not be read"
            )


def _emit(
    everything: _Everything,
    kept_out: list[dict[str, Any]] | None,
    options: _Options,
    *,
    as_set: bool,
) -> None:
    documents: list[dict[str, Any]] = []
    for survey in everything.found:
        path = None if options.dry_run else str(options.place.sources(survey.dataset))
        documents.append({**survey.summary(), "manifest": path})
    if documents and not as_set:
        emit_json(documents[0] | ({"benchmarks": kept_out} if kept_out is not None else {}))
        return
    absent = [{"name": c.name, "folders": list(_folders(c))} for c in everything.absent]
    failed = [{"name": name, "error": error} for name, error in everything.failed.items()]
    document = {"datasets": documents, "absent": absent, "failed": failed}
    emit_json(document | ({"benchmarks": kept_out} if kept_out is not None else {}))


def _folders(card: Card) -> tuple[str, ...]:
    return tuple(dict.fromkeys(folder for layout in card.layouts for folder in layout.folders))


def _overview(found: list[Survey]) -> Table:
    table = Table(title="all sources", title_justify="left")
    table.add_column("data set")
    for name in ("candidates", "usable", "expected"):
        table.add_column(name, justify="right")
    for survey in found:
        expected = "?" if survey.card.expected is None else str(survey.card.expected)
        mark = "" if survey.as_expected else " !"
        numbers = (str(len(survey.table)), f"{survey.usable}{mark}", expected)
        table.add_row(survey.dataset, *numbers)
    return table


def _print_survey(found: Survey, options: _Options) -> None:
    from prect.manifests.sources import code_examples, count_codes, count_verdicts

    verdicts = {name: n for name, n in count_verdicts(found.table).items() if n}
    console.print(count_table(f"{found.dataset}: verdicts", verdicts, "verdict"))
    codes = count_codes(found.table)
    if codes:
        examples = code_examples(found.table)
        console.print(count_table("not usable, by reason", codes, "code", examples))
    passed = found.passed
    _tell(passed.labels, lambda n: f"labels, by the card: {n}")
    _tell(
        passed.unlisted.total(),
        lambda n: (
            f"images outside the card's patterns: {n}, most in "
            f"{passed.unlisted.most_common(1)[0][0]}"
        ),
    )
    if passed.other_files:
        others = ", ".join(f"{n} {suffix}" for suffix, n in passed.other_files.most_common())
        console.print(f"other files, no images: {others}")
    for folder in passed.skipped_folders:
        console.print(f"folder not entered, since such folders hold pickles: {folder}")
    _tell(
        len(found.removed),
        lambda n: f"gone since the last ingest: {n}, for example {found.removed[0]}",
    )
    if not len(found.table):
        console.print(f"no candidate volume was found under {found.root}")
    if not found.as_expected:
        console.print(f"the card expects {found.card.expected} volumes, {found.usable} are usable")
    manifest = options.place.sources(found.dataset)
    where = "nothing was written (dry run)" if options.dry_run else str(manifest)
    unchanged = f" ({found.kept} unchanged, not read again)" if found.kept else ""
    console.print(f"{len(found.table)} candidates{unchanged}; {where}")


def _tell(number: int, sentence: Callable[[int], str]) -> None:
    if number:
        console.print(sentence(number))


def _explain(place: Workspace, dataset: str, case: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from prect.ingest.explain import explain
    from prect.manifests.cards import find_card, load_card

    name = dataset
    if dataset.endswith((".yaml", ".yml")):
        name = load_card(Path(dataset)).name
    elif dataset not in place.datasets() and (card := find_card(dataset)) is not None:
        name = card.name
    explanation = explain(place, name, case)
    if as_json:
        row = {
            key: value
            for key, value in vars(explanation.row).items()
            if key not in ("sketch", "members")
        }
        emit_json({"row": row, "checks": [asdict(line) for line in explanation.lines]})
    else:
        _print_explanation(explanation)


def _print_explanation(explanation: Explanation) -> None:
    row = explanation.row
    table = Table(title=Text(f"{row.dataset}/{row.case}: {row.source}"), title_justify="left")
    table.add_column("check", no_wrap=True)
    for column in ("result", "measured", "limit"):
        table.add_column(column, overflow="fold")
    styles = {"passed": "green", "warned": "yellow", "failed": "bold red", "not reached": "dim"}
    for line in explanation.lines:
        result = Text(line.outcome.value, style=styles[line.outcome.value])
        table.add_row(Text(line.code), result, Text(line.measured), Text(line.limit))
    console.print(table)
    for line in explanation.lines:
        if line.outcome in ("warned", "failed"):
            console.print(f"{line.code}: {line.sentence}")
    judged = f"the files alone: {row.judged}" + (f" ({row.judged_code})" if row.judged_code else "")
    console.print(judged)
    console.print(f"verdict: {row.verdict}" + (f", {row.code}: {row.reason}" if row.code else ""))
