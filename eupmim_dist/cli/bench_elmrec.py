"""`eupmim-dist bench elmrec`: ELMRec here beside the published procedure."""

from pathlib import Path
from typing import Annotated

import typer


def elmrec(
    config: Annotated[Path, typer.Option(help="YAML configuration of an elmrec with a graph.")],
    data: Annotated[Path, typer.Option(help="Interaction store with negatives, as of prepare --format elmrec.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Test users that are ranked for.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Of them at a time.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Training steps in a round.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, in which both take turns; medians are reported.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the measurements to this file.")] = None,
) -> None:
    """Measure evaluation and training of ELMRec beside the published procedure, one rank, the same users and sizes.

    Published: the graph is propagated anew for every batch of direct prompts, prompts are tokenised in every step,
    the encoder reads each prompt once for every beam, beams run over all tokens without a cache of keys and values; a
    second figure has that cache, as transformers has it. Ours scores direct candidates exactly. All is
    float32 but our training step, which has Accelerate's mixed precision.

    **Examples**

    `eupmim-dist bench elmrec --config configs/elmrec_example.yaml --data data/beauty`

    `eupmim-dist bench elmrec --config configs/elmrec_example.yaml --data data/beauty --set model.dim=512
    --set model.num_blocks=6 --set model.num_heads=8 --set model.feed_forward=2048 --set task.num_negatives=99`

    `ACCELERATE_MIXED_PRECISION=bf16 eupmim-dist bench elmrec --config configs/elmrec_example.yaml --data data/beauty`
    """
    from eupmim_dist.bench.elmrec import measure_elmrec
    from eupmim_dist.cli.options import check_json, write_json
    from eupmim_dist.config.load import load_config
    from eupmim_dist.errors import UserError
    from eupmim_dist.parallel.world import init_world

    world = init_world()
    if world.size > 1:
        raise UserError("bench elmrec: the published procedure has one rank; start it without launch")
    check_json(json_file)
    settings = load_config(config, [*(set_ or []), f"data.dir={data}"])
    measured = measure_elmrec(settings, world, users, batch, steps, rounds)
    for name, value in measured.items():
        if name != "ms":
            typer.echo(f"{name:26} {value:,}" if isinstance(value, int) else f"{name:26} {value}")
    for what, of_work in measured["ms"].items():
        typer.echo(f"{what}: ours {of_work['ours']:,.2f} ms")
        for name, times in of_work["times"].items():
            typer.echo(f"    {name} {of_work[name]:,.2f} ms, {times:.1f} times as long")
    write_json(json_file, measured)
