"""`eupmim-dist evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from eupmim_dist.cli.options import DataOption, LastOption, check_json


def evaluate(
    run_or_checkpoint: Annotated[
        Path | None,
        typer.Argument(help="A run directory, a checkpoint, or a consolidated or imported model."),
    ] = None,
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="`valid` or `test`.")] = "test",
    protocol: Annotated[
        list[str] | None, typer.Option(help="`strict`, `comirec` or `seed`; several with commas or repeated.")
    ] = None,
    top_n: Annotated[str, typer.Option(help="Cut-offs N, separated by commas.")] = "10,20,50",
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="`popularity`, `ease` or `cooccurrence` beside the model, or alone with --data."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the metrics to this file too.")] = None,
    last: LastOption = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even where there are GPUs.")] = False,
) -> None:
    """Measure top-N metrics of a trained model, of baselines, or of both side by side.

    Every user of the split is ranked once against the whole catalogue. The protocols: `strict` (default) leaves out
    what the user already had and counts distinct items; `comirec` keeps the history among the candidates; `seed` is
    what the E-UPMiM authors' script measures, for comparison only.

    **Examples**

    `eupmim-dist evaluate runs/example`

    `eupmim-dist evaluate runs/example --baseline popularity,ease,cooccurrence --top-n 10 --json metrics.json`

    `eupmim-dist evaluate --data data/example --baseline ease`

    `eupmim-dist launch --nproc 2 -- evaluate runs/example --protocol strict,seed`
    """
    from eupmim_dist import assemble
    from eupmim_dist.cli.options import comma_separated, cutoffs
    from eupmim_dist.cli.tables import print_results, write_results
    from eupmim_dist.config.schema import Config
    from eupmim_dist.errors import UserError
    from eupmim_dist.evaluation.baselines.registry import BASELINES, check_names
    from eupmim_dist.evaluation.protocols import PROTOCOLS
    from eupmim_dist.evaluation.runner import evaluate as evaluate_scorer
    from eupmim_dist.evaluation.runner import evaluate_model, held_out_users
    from eupmim_dist.parallel.agreement import agreed
    from eupmim_dist.parallel.world import init_world, shutdown

    world = init_world(cpu)
    with agreed(world):
        protocols = comma_separated("--protocol", protocol or ["strict"])
        baselines = comma_separated("--baseline", baseline or [])
        numbers = cutoffs(top_n)
        if split not in ("valid", "test"):
            raise UserError(f"--split {split}: choose valid or test")
        for name in protocols:
            if name not in PROTOCOLS:
                raise UserError(f"--protocol {name}: choose from {', '.join(PROTOCOLS)}")
        check_names(baselines)
        check_json(json_file)
    with agreed(world):
        if run_or_checkpoint is not None:
            trained = assemble.load_trained(run_or_checkpoint, world, data, "last" if last else "best")
            config, store = trained.config, trained.store
            results = [evaluate_model(trained, split, name, numbers, progress=True) for name in protocols]
        elif baselines and data:
            config, store = Config(), assemble.open_store(data, world)
            results = []
        else:
            raise UserError("evaluate: give a run or checkpoint, or --baseline NAME with --data DIR")
        users = held_out_users(config, store, split, world)
        for name in baselines:
            with agreed(world):
                scorer = BASELINES[name](store, config.data.history_length, world)
            for protocol_name in protocols:
                chosen = PROTOCOLS[protocol_name]
                results.append(evaluate_scorer(scorer, name, users, chosen, numbers, world, progress=True))
    with agreed(world):
        if world.is_main:
            print_results(results)
            write_results(results, json_file)
    shutdown(world)
