"""Result tables for people and JSON for programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eupmim_dist.cli.options import write_json
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.baselines import histories_read
from eupmim_dist.evaluation.protocols import EXPLANATION
from eupmim_dist.evaluation.runner import Result
from eupmim_dist.export.frame_files import check_file, frame_file


def print_results(results: Sequence[Result]) -> None:
    """A table per protocol and split, a row per model and N; the best of each column and N in bold."""
    console, told = Console(), ""
    for protocol, split in dict.fromkeys((result.protocol, result.split) for result in results):
        rows = [result for result in results if (result.protocol, result.split) == (protocol, split)]
        metrics, cutoffs = (
            list(dict.fromkeys(name.partition("@")[part] for name in rows[0].metrics)) for part in (0, 2)
        )
        table = Table(title=rows[0].title, title_justify="left")
        at_cutoffs = cutoffs != [""]
        for column in ("model", *["N"][:at_cutoffs], *metrics):
            table.add_column(column, justify="left" if column == "model" else "right")
        for cutoff in cutoffs:
            names = [f"{metric}@{cutoff}".removesuffix("@") for metric in metrics]
            best = [max(row.metrics[name] for row in rows) for name in names]
            for row in rows:
                bold = [len(rows) > 1 and row.metrics[name] == top for name, top in zip(names, best, strict=True)]
                cells = [_cell(row.metrics[name], is_best) for name, is_best in zip(names, bold, strict=True)]
                table.add_row(row.model, *[cutoff][:at_cutoffs], *cells, end_section=len(rows) > 1 and row is rows[-1])
        console.print(table)
        for row in rows:
            if row.interests is not None:
                console.print(f"{row.model}: {row.interests}", highlight=False)
        if (read := histories_read({row.model: row.history for row in rows})) and read != told:
            console.print(told := read, highlight=False)


def _cell(value: float, is_best: bool) -> str:
    return f"[bold]{value:.4f}[/bold]" if is_best else f"{value:.4f}"


def write_results(results: Sequence[Result], file: Path | None) -> None:
    """The results as JSON, if asked for: an object, or a list where there are several."""
    content: Any = [result.as_dict() for result in results]
    write_json(file, content[0] if len(content) == 1 else content)


def check_texts(file: Path | None, protocols: Sequence[str]) -> None:
    """Raises UserError where texts could not be written to a file, or there will be none."""
    if file is None:
        return
    if EXPLANATION not in protocols:
        raise UserError(f"--texts {file}: there are texts of --protocol {EXPLANATION} alone; give it too")
    check_file(file, "--texts")


def write_texts(results: Sequence[Result], file: Path | None) -> None:
    """What was written and what people wrote, if asked for."""
    if file is None:
        return
    for result in results:
        if result.texts is not None:
            with frame_file(file, dict(result.texts.schema), "--texts") as write:
                write(result.texts)
