"""What `prepare` and `synth` show: progress while a store is made, and a table of what it holds."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from eupmim_dist.data.manifest import StoreManifest
from eupmim_dist.data.splits import SPLIT_RULES
from eupmim_dist.telemetry.log import console

WIDTH, LABEL_WIDTH = 80, 13
"""Characters of a line, and of the word before what is told."""


@contextmanager
def stage_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function `(what, done, total)` that shows the present stage on a terminal's stderr; total 0: unknown."""
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
    terminal = console(stderr=True)
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        stage = ""

        def show(what: str, done: int, total: int) -> None:
            nonlocal stage
            if what != stage:
                stage = what
                bar.reset(task, description=what, total=total or None)
            bar.update(task, completed=done)

        yield show


def print_told(what: str, told: str) -> None:
    """What there is to say under a word, on stdout."""
    label = f"{what:<{LABEL_WIDTH}}"
    lines = textwrap.wrap(
        told, WIDTH, initial_indent=label, subsequent_indent=" " * LABEL_WIDTH, break_on_hyphens=False
    )
    console().print("\n".join(lines))


def print_store(out: Path, manifest: StoreManifest) -> None:
    """The counts of a store, from its manifest, as a table on stdout."""
    counts = manifest.counts
    table = Table(title=f"{manifest.name}: {manifest.source}", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    for what, count in (("users", counts.users), ("items", counts.items), ("interactions", counts.interactions)):
        table.add_row(what, f"{count:,}")
    for what, held_out in SPLIT_RULES[manifest.split_rule].rows(manifest.split_users).items():
        table.add_row(what, held_out)
    for attribute in manifest.attributes:
        table.add_row(f"values of {attribute.name}", f"{attribute.cardinality:,}")
    if manifest.timestamp_ties is not None:
        table.add_row("equal timestamps, kept in file order", f"{manifest.timestamp_ties:,}")
    for what, count in manifest.report.items():
        table.add_row(what if " " in what else what.replace("_", " "), f"{count:,}")
    console().print(table)
    console().print(f"Wrote {out}")
