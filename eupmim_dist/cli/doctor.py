"""`eupmim-dist doctor`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from eupmim_dist.doctor.findings import Finding

STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}
WIDTH = 80


def doctor(
    config: Annotated[
        Path | None, typer.Option(help="YAML configuration of what is to be trained; also its data and memory.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run is to write: whether all ranks see it and can write.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="CPU ranks, even where there are GPUs.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all that was found to this file too.")] = None,
) -> None:
    """Look at a launch before the first training: what is wrong, and the mend.

    Start it just as the training will be. A row for each check: PASS, WARN (it works, less well) or FAIL. All ranks
    look; what one of them lacks is told with its host. Nothing takes longer than EUPMIM_TIMEOUT_SECONDS (60 here unless
    set). Exit code 2 if a check fails that is yours to set right, as for a training that is refused; 1 if a connection
    breaks all the same.

    **Examples**

    `eupmim-dist doctor --config configs/example.yaml`

    `eupmim-dist launch -- doctor --config configs/example.yaml --run-dir runs/a`

    `eupmim-dist launch --nnodes 2 --node-rank 0 --rdzv-endpoint node0:29500 -- doctor --run-dir /shared/runs/a`
    """
    from eupmim_dist.cli.options import check_json, write_json
    from eupmim_dist.config.load import load_config
    from eupmim_dist.doctor.examine import examine, wait_for_the_report

    check_json(json_file)
    settings = load_config(config, set_ or []) if config or set_ else None
    found = examine(settings, run_dir, cpu)
    if not found.together and found.world.rank:
        time.sleep(3)  # rank 0 may have the same to tell, and the launcher stops all ranks with the first that fails
    if found.world.is_main or not found.together:
        _print(found.findings)
        for option, given in (("--config: data, memory", settings), ("--run-dir: the run directory", run_dir)):
            if given is None:
                typer.echo(f"not looked at without {option}")
        write_json(json_file, found.as_dict())
    wait_for_the_report(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _print(findings: "list[Finding]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for column in (None, 4, None):
        table.add_column(width=column, overflow="fold")
    for finding in findings:
        told = Text(finding.found)
        if finding.mend:
            told.append(f"\nmend: {finding.mend}", "bold")
        table.add_row(finding.check, Text(finding.verdict, STYLES[finding.verdict]), told)
    terminal = Console(highlight=False, markup=False)
    terminal = terminal if terminal.is_terminal else Console(width=WIDTH, highlight=False, markup=False)
    terminal.print(table)
    counts = {verdict: sum(each.verdict == verdict for each in findings) for verdict in STYLES}
    terminal.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
