"""`eupmim-dist report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directories, finished or under way.")],
    out: Annotated[Path, typer.Option(help="The page; what was there is replaced.")] = Path("report.html"),
    data: Annotated[
        Path | None, typer.Option(help="Interaction store, if it no longer lies where the first run found it.")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="`popularity`, `ease`, `cooccurrence` or `association`, several with commas or repeated; or `none`. "
            "By default popularity, association and, of up to 5,000 items, ease."
        ),
    ] = None,
    users: Annotated[int, typer.Option(help="How many example users to show.")] = 6,
    split: Annotated[str, typer.Option(help="`valid` or `test`: whose users.")] = "test",
) -> None:
    """Write one HTML page about runs of one store, to be looked at, sent or printed; it needs no network.

    It has the curves of their trainings over each other, figures of their best checkpoints beside baselines' with 95 %
    intervals over users, what some users are recommended and by which interest, a map of the items, where the time
    went, and the settings in which they differ. Figures are by the protocol that the first run is tested by:
    `elmrec_direct` if that judged it, else `strict`.

    **Examples**

    `eupmim-dist report runs/a`

    `eupmim-dist report runs/a runs/b --out ab.html --baseline ease,cooccurrence --users 10`
    """
    from eupmim_dist.cli.options import comma_separated
    from eupmim_dist.reporting.report import report as write_report

    names = None if baseline is None else comma_separated("--baseline", baseline)
    written = write_report(
        list(runs), out, data=data, baselines=[] if names == ["none"] else names, users=users, split=split
    )
    typer.echo(f"Wrote {written}")
