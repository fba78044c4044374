"""`eupmim-dist evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from eupmim_dist.cli.options import CategoriesOption, DataOption, DiversityOption, LastOption, check_json


def evaluate(
    run_or_checkpoint: Annotated[
        Path | None,
        typer.Argument(help="A run directory, a checkpoint, or a consolidated or imported model."),
    ] = None,
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="`valid` or `test`.")] = "test",
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="`strict`, `comirec`, `seed`, `elmrec_sequential`, `elmrec_direct` or `elmrec_explanation`; several "
            "with commas or repeated."
        ),
    ] = None,
    top_n: Annotated[
        str | None,
        typer.Option(help="Cut-offs N, separated by commas.  \\[default: 10,20,50; of ELMRec's protocols 1,5,10]"),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="`popularity`, `ease`, `cooccurrence`, `association`, `paths`, `history_paths` or `next_id` "
            "beside the model, or alone with --data."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of `evaluation`; may be repeated."),
    ] = None,
    diversity: DiversityOption = 0.0,
    categories: CategoriesOption = None,
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what elmrec_explanation wrote to this .jsonl, .parquet or .csv."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the metrics to this file too.")] = None,
    last: LastOption = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even where there are GPUs.")] = False,
) -> None:
    """Measure top-N metrics of a trained model, of baselines, or of both side by side.

    Every user of the split is ranked once against the whole catalogue. The protocols: `strict` (default) leaves out
    what the user already had and counts distinct items; `comirec` keeps the history among the candidates; `seed` is
    what the E-UPMiM authors' script measures, for comparison only; `elmrec_sequential` is `strict` at ELMRec's
    cut-offs, and `elmrec_direct` ranks the target among the 99 negatives of each user that the store has;
    `elmrec_explanation` compares what a model writes of items with what people wrote.

    **Examples**

    `eupmim-dist evaluate runs/example`

    `eupmim-dist evaluate runs/example --baseline popularity,ease,association --top-n 10 --json metrics.json`

    `eupmim-dist evaluate --data data/example --baseline ease`

    `eupmim-dist evaluate runs/example --categories items.csv --diversity 0.5`

    `eupmim-dist evaluate --data data/beauty --protocol elmrec_sequential,elmrec_direct --baseline popularity,paths`

    `eupmim-dist launch --nproc 2 -- evaluate runs/example --protocol strict,seed`
    """
    from eupmim_dist import api
    from eupmim_dist.cli.options import comma_separated, cutoffs
    from eupmim_dist.cli.tables import check_texts, print_results, write_results, write_texts
    from eupmim_dist.parallel.agreement import agreed
    from eupmim_dist.parallel.world import init_world, shutdown

    world = init_world(cpu)
    with agreed(world):
        protocols = comma_separated("--protocol", protocol or ["strict"])
        baselines = comma_separated("--baseline", baseline or [])
        numbers = None if top_n is None else cutoffs(top_n)
        check_json(json_file)
        check_texts(texts, protocols)
    with agreed(world):
        results = api.evaluate(
            run_or_checkpoint,
            split=split,
            protocols=protocols,
            top_n=numbers,
            baselines=baselines,
            diversity=diversity,
            categories=categories,
            overrides=set_ or (),
            data=data,
            which="last" if last else "best",
            cpu=cpu,
        )
    with agreed(world):
        if world.is_main:
            print_results(results)
            write_results(results, json_file)
            write_texts(results, texts)
    shutdown(world)
