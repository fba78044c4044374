"""`eupmim-dist verify`."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Runs, all of whose checkpoints are meant, checkpoints or models."),
    ],
) -> None:
    """Check that checkpoints and models are complete, unchanged and sound.

    Each file must have the size and SHA-256 of the manifest, the files together every row of every tensor once, and all
    numbers must be finite. What is wrong is told in a line for each checkpoint, with exit code 2. A model's
    `config.json` and `README.md` are there to be edited, so they are not compared with anything.

    **Examples**

    `eupmim-dist verify runs/example`

    `eupmim-dist verify runs/example/checkpoints/step-000001000 models/example`
    """
    from rich.table import Table

    from eupmim_dist.checkpoint.verify import left_overs, to_verify
    from eupmim_dist.checkpoint.verify import verify as check
    from eupmim_dist.cli.display import print_table
    from eupmim_dist.errors import UserError
    from eupmim_dist.telemetry.log import console
    from eupmim_dist.telemetry.progress import byte_progress

    found = [checkpoint for path in paths for checkpoint in to_verify(path)]
    sizes = {path: _num_bytes(path) for path in found}
    with byte_progress("verifying", 2 * sum(sizes.values())) as on_bytes:
        findings = [check(path, on_bytes) for path in found]
    table = Table()
    for column in ("checkpoint", "step", "MB", "verdict"):
        table.add_column(column, justify="right" if column in ("step", "MB") else "left", overflow="fold")
    for finding in findings:
        step = "" if finding.step is None else f"{finding.step:,}"
        verdict = finding.problem or (f"sound, but not to be used here: {finding.note}" if finding.note else "sound")
        table.add_row(str(finding.path), step, f"{sizes[finding.path] / 1e6:,.1f}", verdict)
    print_table(table)
    for left in [left for path in paths for left in left_overs(path)]:
        console().print(f"{left}: unfinished; it is being written, or was when that was killed")
    wrong = sum(finding.problem is not None for finding in findings)
    if wrong:
        raise UserError(f"verify: {wrong} of {len(findings)} not sound; the table says why")


def _num_bytes(path: Path) -> int:
    total = 0
    with suppress(OSError):  # a run that goes on deletes its earlier checkpoints
        total = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return total
