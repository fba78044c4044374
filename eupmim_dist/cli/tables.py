"""Result tables for people and JSON for programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.runner import Result


def print_results(results: Sequence[Result]) -> None:
    """A table per protocol and split, a row per model; four digits, the best of each column in bold."""
    console = Console()
    for protocol, split in dict.fromkeys((r.protocol, r.split) for r in results):
        rows = [r for r in results if (r.protocol, r.split) == (protocol, split)]
        table = Table(title=f"{split} split, protocol {protocol}, {rows[0].users:,} users", title_justify="left")
        table.add_column("model")
        names = list(rows[0].metrics)
        for name in names:
            table.add_column(name, justify="right")
        best = {name: max(row.metrics[name] for row in rows) for name in names}
        for row in rows:
            cells = [_cell(row.metrics[name], len(rows) > 1 and row.metrics[name] == best[name]) for name in names]
            table.add_row(row.model, *cells)
        console.print(table)


def _cell(value: float, is_best: bool) -> str:
    return f"[bold]{value:.4f}[/bold]" if is_best else f"{value:.4f}"


def write_results(results: Sequence[Result], file: Path) -> None:
    """The results as JSON: an object, or a list where there are several."""
    content: Any = [result.as_dict() for result in results]
    try:
        file.write_text(json.dumps(content[0] if len(content) == 1 else content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {file}: cannot be written: {error.strerror}") from None
