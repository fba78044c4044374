"""`eupmim-dist synth`."""

from pathlib import Path
from typing import Annotated

import typer


def synth(
    users: Annotated[int, typer.Option(help="Number of users, 10 or more.")],
    items: Annotated[int, typer.Option(help="Number of items, 12 times the mean length or more.")],
    out: Annotated[Path, typer.Option(help="Directory of the new store.")],
    seed: Annotated[int, typer.Option(help="The same sizes and seed give the same data.")] = 1,
    mean_length: Annotated[int, typer.Option(help="Interactions per user on average, 10 or more.")] = 40,
    force: Annotated[bool, typer.Option("--force", help="Replace the store that OUT already holds.")] = False,
) -> None:
    """Make an interaction store of example data with planted interests and profiles.

    Users go through several topics in sessions; their age, gender and occupation decide which topic follows and
    which items of it they like.

    **Examples**

    `eupmim-dist synth --users 4000 --items 1000 --out data/example`

    `eupmim-dist synth --users 10000000 --items 1000000 --out data/large`
    """
    from eupmim_dist.cli.stores import print_store, stage_progress
    from eupmim_dist.data.synth import synthesize

    with stage_progress() as progress:
        manifest = synthesize(out, users, items, seed=seed, mean_length=mean_length, force=force, progress=progress)
    print_store(out, manifest)
