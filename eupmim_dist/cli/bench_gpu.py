"""`eupmim-dist bench gpu`: what could be wrong or slow on a GPU, line by line."""

from pathlib import Path
from typing import Annotated, Any

import typer

from eupmim_dist.errors import UserError


def gpu(
    only: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Make these checks alone: 'attention,same bits', say.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="No check begins after so long.")] = 9.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write verdicts and figures to this file, anew after each check.")
    ] = None,
) -> None:
    """Check everything that a GPU could get wrong, and measure it: PASS or FAIL for each line.

    Each check is a process of its own, on data made for it. On a machine without a GPU the same checks run in
    small on its processor, as far as they go. Exit code 1 if one fails.

    **Examples**

    `eupmim-dist bench gpu --json gpu-check.json`

    `eupmim-dist bench gpu --only machine,attention`
    """
    from tempfile import TemporaryDirectory

    import torch

    from eupmim_dist.bench.gpu.check import CHECKS, run_checks
    from eupmim_dist.bench.gpu.sizes import sizes_for
    from eupmim_dist.cli.options import check_json, write_json
    from eupmim_dist.data.synth import synthesize

    names = list(CHECKS) if only is None else list(dict.fromkeys(only.split(",")))
    if unknown := [name for name in names if name not in CHECKS]:
        raise UserError(f"--only: {unknown[0]!r} is none of {', '.join(CHECKS)}")
    check_json(json_file)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = sizes_for(torch.device("cuda" if gpus else "cpu"))
    outcomes = []
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        place = Path(scratch)
        store = place / "store"
        synthesize(store, sizes.users, sizes.items, seed=1, mean_length=20, force=False, progress=lambda *_: None)
        for outcome in run_checks(place, names, 60 * minutes, gpus):
            last = outcome.reason.strip().rpartition("\n")[2]  # the whole of it is in the file
            typer.echo(f"{outcome.verdict}  {outcome.name:14} {outcome.seconds:5.1f} s  {last}".rstrip())
            for line in _told(outcome.figures):
                typer.echo(f"      {line}")
            outcomes.append(outcome.as_dict())
            write_json(json_file, outcomes)
    if any(outcome["verdict"] in ("FAIL", "LATE") for outcome in outcomes):
        raise typer.Exit(1)


def _told(figures: dict[str, Any], before: str = "") -> list[str]:
    """A line for each innermost table of figures."""
    inner = {name: value for name, value in figures.items() if isinstance(value, dict)}
    flat = [f"{name} {_figure(value)}" for name, value in figures.items() if name not in inner]
    lines = [f"{before}{', '.join(flat)}"] if flat else []
    for name, value in inner.items():
        lines += _told(value, f"{before}{name}: ")
    return lines


def _figure(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:,.1f}" if abs(value) >= 1 else f"{value:.2g}"
