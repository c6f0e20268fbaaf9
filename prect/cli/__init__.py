"""The command line: parses, calls the library, prints, sets the exit status."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.text import Text

from prect import __version__
from prect.cli import (
    benchmark,
    build,
    data,
    datasets,
    ingest,
    probe,
    runs,
    stores,
    training,
    verify,
    weights,
)
from prect.cli.console import ExitCode, console
from prect.errors import PrectError

app = typer.Typer(
    name="prect",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Public CT collections into compact Zarr stores, and VoCo pre-training from them.",
)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"prect {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Public CT collections into compact Zarr stores, and VoCo pre-training from them."""


app.command("phantom")(data.phantom)
app.add_typer(datasets.app, name="datasets")
app.command("ingest")(ingest.ingest)
app.command("build-cache")(build.build_cache)
app.command("verify")(verify.verify)
app.command("export-nifti")(stores.export_nifti)
app.command("remove")(stores.remove)
app.command("gc")(stores.gc)
app.command("status")(data.status)
app.command("train")(training.train)
app.add_typer(runs.app, name="runs")
app.command("export")(weights.export)
app.command("weights")(weights.weights)
app.command("probe")(probe.probe)
app.command("replay")(training.replay)
app.command("benchmark-io")(benchmark.benchmark_io)


def main() -> None:
    """Run the command line; a typed error ends it with its message and exit status 1."""
    try:
        app()
    except (PrectError, OSError) as error:
        console.print(Text("error: ", style="bold red") + Text(str(error)))
        for note in getattr(error, "__notes__", ()):
            console.print(f"  {note}")
        sys.exit(ExitCode.USER_ERROR)
