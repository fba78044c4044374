"""`eupmim-dist audit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eupmim_dist.cli.options import check_json, write_json

if TYPE_CHECKING:
    from eupmim_dist.auditing.findings import Audit

STYLES = {"ok": "green", "look": "yellow", "bad": "bold red"}


def audit(
    store: Annotated[Path, typer.Argument(help="The interaction store.")],
    split: Annotated[str, typer.Option(help="`valid` or `test`: whose held-out interactions to look at.")] = "test",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file too.")] = None,
) -> None:
    """Look for leaks in a store and describe its data: what to know before believing a figure measured on it.

    One row for each finding, with a verdict: `ok`, `look` (it matters for some models or some claims) or `bad` (figures
    on this store mislead). It is a report: the exit code is 0 whatever it finds.

    **Examples**

    `eupmim-dist audit data/example`

    `eupmim-dist audit data/beauty --split valid --json audit.json`
    """
    from eupmim_dist.auditing.audit import audit as look_into

    check_json(json_file)
    found = look_into(store, split=split)
    _print(found)
    write_json(json_file, found.as_dict(), allow_nan=False)


def _print(found: "Audit") -> None:
    from rich.table import Table
    from rich.text import Text

    from eupmim_dist.cli.display import print_table
    from eupmim_dist.telemetry.log import console

    width = max(len(finding.figure) for group in found.groups for finding in group.findings)
    for group in found.groups:
        table = Table(
            title=Text(group.title, "bold"), title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0)
        )
        table.add_column(width=27)
        table.add_column(width=width, justify="right")
        table.add_column(width=4)
        table.add_column()
        for finding in group.findings:
            table.add_row(finding.what, finding.figure, Text(finding.verdict, STYLES[finding.verdict]), finding.meaning)
        print_table(table)
        console().print()
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in found.verdicts.items())
    console().print(f"{found.store}, split {found.split_rule}, {found.split}: {verdicts}")
