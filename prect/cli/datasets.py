"""Commands about the catalogue: what there is to ingest, and cards of a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prect.cli.console import (
    DEFAULT_WORKSPACE,
    JsonOption,
    WorkspaceOption,
    console,
    emit_json,
)

if TYPE_CHECKING:
    from prect.manifests.cards import Card
    from prect.manifests.holdings import Holding

_WIDE = 150
"""Characters a line from which every fact has a column of its own."""
_UNLIMITED = 200
"""Characters a line where no terminal sets a limit."""

app = typer.Typer(invoke_without_command=True)


@app.callback()
def datasets(
    context: typer.Context,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """List the sources of the catalogue: what to expect, what is ingested and stored."""
    if context.invoked_subcommand is not None:
        if json:
            raise typer.BadParameter(f"--json goes after {context.invoked_subcommand!r}")
        return
    from prect.manifests.holdings import holdings
    from prect.workspace import Workspace

    found = holdings(Workspace(workspace))
    if json:
        emit_json({"workspace": workspace, "datasets": [_row(holding) for holding in found]})
        return
    width = console.width if console.is_terminal else _UNLIMITED
    wide = width >= _WIDE
    Console(stderr=True, width=width, highlight=False).print(_table(found, wide=wide))
    if not wide:
        console.print(f"a terminal of {_WIDE} characters a line shows titles and licences, too")
    _explain(found)


def _row(holding: Holding) -> dict[str, Any]:
    card = holding.card
    return {
        "name": card.name,
        "title": card.title,
        "expected": card.expected,
        "paper": card.volumes.paper,
        "listed": card.volumes.listed,
        "ingested": holding.ingested,
        "found": holding.found,
        "usable": holding.usable,
        "stored": holding.stored,
        "as_expected": holding.as_expected if holding.ingested else None,
        "region": card.region,
        "format": card.format,
        "licence": card.licence.model_dump(),
        "homepage": card.homepage.model_dump(),
        "benchmark": card.benchmark,
        "overlaps": list(card.overlaps),
    }


def _table(found: list[Holding], *, wide: bool) -> Table:
    table = Table(title="sources", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    for name in ("expected", "usable/found", "stored"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("title", "region", "format", "licence", "leakage") if wide else ("source",):
        table.add_column(name, overflow="fold")
    for holding in found:
        card = holding.card
        stored = str(holding.stored) if holding.ingested else "-"
        leakage = "benchmark" if card.benchmark else ""
        if wide:
            about = [card.title, card.region, card.format, _licence(card), leakage]
        else:
            approval = "approval" if card.licence.approval else ""
            about = [", ".join(filter(None, (card.region, card.format, approval, leakage)))]
        numbers = (Text(_expected(card)), _counts(holding), Text(stored))
        table.add_row(Text(card.name), *numbers, *map(Text, about))
    return table


def _licence(card: Card) -> str:
    approval = ", needs approval" if card.licence.approval else ""
    return f"{card.licence.name}{approval}{'' if card.licence.verified else ' (unverified)'}"


def _expected(card: Card) -> str:
    """The count of the lists, and the paper's in brackets where it is another."""
    paper, listed = card.volumes.paper, card.volumes.listed
    if listed is not None and paper not in (None, listed):
        return f"{listed} ({paper})"
    return "?" if card.expected is None else str(card.expected)


def _counts(holding: Holding) -> Text:
    if not holding.ingested:
        return Text("-")
    counts = f"{holding.usable}/{holding.found}"
    if holding.as_expected:
        return Text(counts)
    difference = holding.usable - (holding.card.expected or 0)
    return Text(f"{counts} ({difference:+d}) !", style="bold red")


def _explain(found: list[Holding]) -> None:
    here = [holding for holding in found if holding.ingested]
    differ = [holding.card.name for holding in here if not holding.as_expected]
    console.print(f"{len(found)} sources, {len(here)} ingested")
    console.print("expected: volumes in the released lists (the paper's count, where it differs)")
    if differ:
        console.print(f"! another number of usable volumes than expected: {', '.join(differ)}")


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="Name or alias of a card, or the path of a .yaml file.")
    ],
    json: JsonOption = False,
) -> None:
    """Print a card, with everything that it leaves at its default."""
    from prect.manifests.cards import card_text

    card = _card(name)
    if json:
        more = {"expected": card.expected, "digest_of_rules": card.digest_of_rules}
        emit_json({**card.model_dump(mode="json"), **more})
    else:
        console.print(card_text(card), end="", soft_wrap=True)


def _card(name: str) -> Card:
    from prect.errors import ConfigError
    from prect.manifests.cards import find_card, load_card, near_names

    if name.endswith((".yaml", ".yml")):
        return load_card(Path(name))
    card = find_card(name)
    if card is None:
        near = near_names(name)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; `prect datasets` lists them"
        raise ConfigError(f"no card is named {name!r}{hint}")
    return card


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name that the data set shall have.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="File to write, or its folder; NAME.yaml here when left out."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card, write nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write a card to fill in, for a data set of your own."""
    from prect.errors import ConfigError
    from prect.manifests.cards import template

    text = template(name)
    path = out or Path()
    if path.is_dir():
        path /= f"{name}.yaml"
    if path.exists() and not force and not dry_run:
        raise ConfigError(f"{path} exists; give --force to replace it, or --out another file")
    if not dry_run:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    if json:
        emit_json({"card": str(path), "dry_run": dry_run, "text": text})
    elif dry_run:
        console.print(text, end="", soft_wrap=True)
        console.print(f"would be written to {path} (dry run)")
    else:
        console.print(f"{path} is written; fill it in, then: prect ingest {path} --source DIR")
