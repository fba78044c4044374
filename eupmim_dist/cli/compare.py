"""`eupmim-dist compare`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eupmim_dist.cli.options import CategoriesOption, check_json
from eupmim_dist.errors import UserError, short

HYPHENATED = {
    "coverage": "cover-\nage",
    "diversity": "diver-\nsity",
    "interests": "inter-\nests",
    "different": "diffe-\nrent",
}
"""Headings that are wider than what is below them: all is to fit into 80 columns."""

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table

    from eupmim_dist.comparison.results import Comparison


def compare(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN_OR_CONFIG...", help="Runs, checkpoints or models, and YAML configurations to train."
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="`popularity`, `ease`, `cooccurrence`, `association`, `paths`, `history_paths` or `next_id`; "
            "several with commas or repeated."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Interaction store; else the one that the first model names.")
    ] = None,
    split: Annotated[str, typer.Option(help="`valid` or `test`.")] = "test",
    protocol: Annotated[
        str,
        typer.Option(help="`strict`, `comirec`, `seed`, `elmrec_sequential`, `elmrec_direct` or `elmrec_explanation`."),
    ] = "strict",
    top_n: Annotated[str | None, typer.Option(help="The cut-off N.  \\[default: 10]")] = None,
    seeds: Annotated[
        str, typer.Option(help="Train each configuration with each of these seeds, separated by commas.")
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of all configurations; may be repeated."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'NAME: KEY=VALUE ...'",
            help="Train the one configuration with these settings changed too; may be repeated.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where trainings and results go; the same command goes on there.")] = Path(
        "runs/compare"
    ),
    categories: CategoriesOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file too.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even where there are GPUs.")] = False,
) -> None:
    """Compare models and baselines on one store: how good, how sure, at what cost.

    What is given as a YAML file is trained, one after another, in a run directory below `--out`; what is finished
    there is not trained again. All are judged by one protocol on the same users: with 95 % intervals over users, and
    the p-value of a paired test against the best, corrected for their number. The best by recall comes first, of
    `elmrec_explanation` by ROUGE-1.

    With `--seeds` figures are means over seeds.

    Ctrl-C, SIGTERM or SIGUSR1 has the training that is under way saved, and exits with code 75; the same command goes
    on. Results are also in `comparison.json` and `comparison.md` in `--out`.

    **Examples**

    `eupmim-dist compare runs/a runs/b --baseline popularity,ease`

    `eupmim-dist compare configs/models/*.yaml --set data.dir=data/ml-1m --baseline ease --seeds 1,2,3`

    `eupmim-dist compare configs/example.yaml --variant "k1: model.num_interests=1" --seeds 1,2`

    `eupmim-dist launch --nproc 2 -- compare configs/example.yaml runs/a --categories items.csv`
    """
    import shlex
    import sys

    from eupmim_dist.cli.options import comma_separated, cutoffs, write_json
    from eupmim_dist.comparison.compare import compare as compare_models
    from eupmim_dist.parallel.agreement import agreed
    from eupmim_dist.parallel.world import init_world, shutdown
    from eupmim_dist.train.preemption import EXIT_CODE

    world = init_world(cpu)
    with agreed(world):
        baselines = comma_separated("--baseline", baseline or [])
        number, *more = [None] if top_n is None else cutoffs(top_n)
        if more:
            raise UserError(f"--top-n {short(top_n)}: models are compared at one N; give one")
        wanted_seeds = _seeds(seeds)
        variants = _variants(variant or [])
        check_json(json_file)
    comparison = compare_models(
        models or [],
        data=data,
        baselines=baselines,
        split=split,
        protocol=protocol,
        top_n=number,
        seeds=wanted_seeds,
        overrides=set_ or [],
        variants=variants,
        categories=categories,
        out=out,
        cpu=cpu,
        command=shlex.join(["eupmim-dist", *sys.argv[1:]]),
    )
    with agreed(world):
        if world.is_main and comparison.finished:
            _print(comparison, out)
            write_json(json_file, comparison.as_dict())
    shutdown(world)
    if not comparison.finished:
        raise typer.Exit(EXIT_CODE)
    if comparison.failed:
        raise typer.Exit(1)


def _seeds(text: str) -> list[int]:
    """`1,2` -> `[1, 2]`."""
    from eupmim_dist.cli.options import comma_separated

    parts = comma_separated("--seeds", [text]) if text else []
    if not all(re.fullmatch("[0-9]{1,18}", part) for part in parts):
        raise UserError(f"--seeds {short(text)}: give whole numbers from 0, separated by commas, such as 1,2,3")
    return [int(part) for part in parts]


def _variants(texts: list[str]) -> dict[str, list[str]]:
    """`no-graph: model.graph=false` -> {"no-graph": ["model.graph=false"]}."""
    import shlex

    found: dict[str, list[str]] = {}
    for text in texts:
        name, colon, changes = text.partition(":")
        try:
            settings = shlex.split(changes)
        except ValueError:  # a quotation mark without another
            settings = []
        if not (colon and name.strip() and settings):
            raise UserError(f"--variant {short(text)}: give a name and settings, such as 'no-graph: model.graph=false'")
        if name.strip() in found:
            raise UserError(f"--variant {short(text)}: the name {name.strip()} is given twice")
        found[name.strip()] = settings
    return found


def _print(comparison: "Comparison", out: Path) -> None:
    from eupmim_dist.cli.display import print_table
    from eupmim_dist.comparison.text import cost, in_lines, quality
    from eupmim_dist.telemetry.log import console

    figures = quality(comparison.rows, in_lines)
    print_table(as_table(figures, comparison.title, left=[name for name in figures[0] if name != "p"]))
    print_table(as_table(cost(comparison.rows)))
    for note in comparison.notes:
        console().print(note, soft_wrap=False)
    console().print(f"Also in {out}/comparison.md and comparison.json")


def as_table(rows: list[dict[str, str]], title: str | None = None, left: Sequence[str] = ("model",)) -> "Table":
    """The names of models give way where a line is short."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in rows[0]:
        justify: JustifyMethod = "left" if name in left else "right"
        table.add_column(HYPHENATED.get(name, name), justify=justify, no_wrap=name != "model", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    return table
