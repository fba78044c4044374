"""`eupmim-dist doctor`."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eupmim_dist.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from eupmim_dist.doctor.estimate import Estimate
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
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Start nothing: tell what the training would take on --world ranks.")
    ] = False,
    world: Annotated[int | None, typer.Option(min=1, help="--estimate: ranks.")] = None,
    ranks_per_node: Annotated[int, typer.Option(min=1, help="--estimate: ranks of a node.")] = 8,
    zero: Annotated[int, typer.Option(min=0, max=2, help="--estimate: 1 or 2 for DeepSpeed's ZeRO, 0 for DDP.")] = 0,
    link_gbps: Annotated[float, typer.Option(min=1e-3, help="--estimate: Gbit/s of a node's link, each way.")] = 100.0,
    latency_us: Annotated[float, typer.Option(min=0, help="--estimate: microseconds of a message.")] = 20.0,
    step_ms: Annotated[
        float | None,
        typer.Option(min=0, help="--estimate: milliseconds of a step of one rank alone with its share of the batch."),
    ] = None,
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

    `eupmim-dist doctor --estimate --config configs/example.yaml --world 64 --link-gbps 200 --step-ms 12`
    """
    from eupmim_dist.cli.options import check_json, write_json
    from eupmim_dist.config.load import load_config
    from eupmim_dist.doctor.examine import examine, wait_for_the_report

    check_json(json_file)
    if estimate:
        from eupmim_dist.doctor import estimate as module

        if world is None or os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError("--estimate: needs --world N, the number of ranks, and runs on one; start no launcher")
        plan = module.Plan(world, ranks_per_node, zero, link_gbps, latency_us, step_ms)
        told = module.estimate(load_config(config, set_ or []), plan)
        _print_estimate(told)
        write_json(json_file, told.as_dict())
        return
    if world is not None or step_ms is not None:
        raise UserError(f"{'--world' if world is not None else '--step-ms'}: belongs to --estimate; add it")
    settings = load_config(config, set_ or []) if config or set_ else None
    main = os.environ.get("RANK", "0") == "0"
    found = examine(settings, run_dir, cpu, _show if main else lambda finding: None)
    if not main and not found.together:
        time.sleep(3)  # rank 0 may have the same to tell, and the launcher stops all ranks with the first that fails
        for finding in found.findings:
            _show(finding)
    if main or not found.together:
        verdicts: list[str] = [finding.verdict for finding in found.findings]
        typer.echo(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in STYLES))
        for option, given in (("--config: data, memory", settings), ("--run-dir: the run directory", run_dir)):
            if given is None:
                typer.echo(f"not looked at without {option}")
        write_json(json_file, found.as_dict())
    wait_for_the_report(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _show(finding: "Finding") -> None:
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 2, 0, 0))
    for width in (13, 4, None):
        row.add_column(width=width, overflow="fold")
    told = Text(finding.found)
    if finding.mend:
        told.append(f"\nmend: {finding.mend}", "bold")
    row.add_row(finding.check, Text(finding.verdict, STYLES[finding.verdict]), told)
    _terminal().print(row)
    sys.stdout.flush()


def _print_estimate(found: "Estimate") -> None:
    from eupmim_dist.telemetry.progress import in_bytes

    plan, terminal = found.plan, _terminal()
    nodes = -(-plan.world // plan.per_node)
    terminal.print(f"{plan.world} ranks, {min(plan.per_node, plan.world)} a node on {nodes}\n")
    tables = _columns("tables", "rows", "width", "a rank", "weights", "optimizer")
    for table in found.tables:
        sizes = in_bytes(table.weights), in_bytes(table.state)
        tables.add_row(table.name, f"{table.rows:,}", str(table.dim), f"{table.held:,}", *sizes)
    terminal.print(tables)
    memory = _columns("\nmemory of a rank, at the least", "")
    for what, size in found.memory.items():
        memory.add_row(what, in_bytes(size))
    memory.add_row("ranking, in place of a batch", in_bytes(found.ranking))
    memory.add_row("together, without activations", in_bytes(found.total))
    memory.add_row("NCCL's buffers beside it, on GPUs, up to about", in_bytes(found.nccl))
    terminal.print(memory)
    sent = _columns("\na rank sends in a step, kB", "mean", "most")
    for kind, (mean, most) in found.sent.items():
        sent.add_row(kind, f"{mean / 1e3:,.1f}", f"{most / 1e3:,.1f}")
    sent.add_row("together", f"{sum(mean for mean, _ in found.sent.values()) / 1e3:,.1f}", "")
    terminal.print(sent)
    if found.left_out:
        terminal.print(f"not counted: {', '.join(found.left_out)}")
    terminal.print(
        f"\nbusiest link of a node, one way: {found.link / 1e3:,.1f} kB a step, {found.transfer_ms:,.3f} ms at "
        f"{plan.link_gbps:g} Gbit/s; and {found.latency_ms:,.2f} ms of latency: rows, gradients, {found.sums + 1} sums "
        f"over a tree of ranks, {plan.latency_us:g} us a message"
    )
    if found.step_ms is None:
        terminal.print(
            f"communication: {found.exchange_ms:,.2f} ms a step. For that of a step give --step-ms, what one rank "
            "takes alone for its share of the batch: "
            f"`eupmim-dist bench step --set train.global_batch_size={found.share} ...`"
        )
    else:
        least, most = found.step_ms
        terminal.print(
            f"a step: {least:,.2f} ms if all communication hides behind the {plan.step_ms:g} ms of computation, "
            f"{most:,.2f} ms if none does"
        )


def _terminal() -> "Console":
    from rich.console import Console

    terminal = Console(highlight=False, markup=False)
    return terminal if terminal.is_terminal else Console(width=WIDTH, highlight=False, markup=False)


def _columns(*names: str) -> "Table":
    """A table whose first column is words and whose others are numbers."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", min_width=0 if number else 30, vertical="bottom")
    return table
