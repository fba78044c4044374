"""`eupmim-dist bench scaling`: what exchanges between nodes send and take, here and on as many ranks as one likes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eupmim_dist.cli.options import Ids, IdsPerSample, Rows, Samples, Width
from eupmim_dist.errors import UserError, shown

if TYPE_CHECKING:
    from rich.table import Table

LINK, WITHIN, LATENCY, MESSAGE = 10.0, 40.0, 50.0, 10.0
"""Gbit/s between and within nodes, and microseconds, where nothing else is said."""


def scaling(
    simulate: Annotated[
        bool,
        typer.Option("--simulate", help="Predict steps on more ranks from what one rank takes for its part."),
    ] = False,
    ranks: Annotated[
        str, typer.Option(metavar="W,...", help="Numbers of ranks to predict; on several nodes whole ones.")
    ] = "1,2,4,8,16,32,64,128,256,512,1024,2048,4096",
    ranks_per_node: Annotated[int, typer.Option(min=1, help="Ranks of a node in the prediction.")] = 8,
    link: Annotated[float, typer.Option(min=1e-3, help="Gbit/s of a node's link, each way.")] = LINK,
    within: Annotated[float, typer.Option(min=1e-3, help="Gbit/s that a rank sends to its node.")] = WITHIN,
    latency: Annotated[float, typer.Option(min=0, help="Microseconds of an exchange of nothing.")] = LATENCY,
    message: Annotated[float, typer.Option(min=0, help="Microseconds to send and receive a message.")] = MESSAGE,
    rows: Rows = 2_000_000,
    dim: Width = 64,
    samples: Samples = 2048,
    ids_per_sample: IdsPerSample = 21,
    ids: Ids = "zipf",
    steps: Annotated[int, typer.Option(min=1, help="Counted steps.")] = 20,
    optimizer: Annotated[
        Literal["rowwise_adagrad", "lazy_adam", "sgd"], typer.Option(help="Of the table.")
    ] = "rowwise_adagrad",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Measure and predict steps of a sharded table under each `tables.exchange`: time, and bytes on the links.

    On several ranks each exchange is measured and compared with its prediction: nodes are those of the launch, how
    fast their links are is measured too, and how long ranks wait for each other where they send next to nothing;
    --link, --within, --latency and --message are for --simulate. A prediction draws ids as the benchmark does and
    counts what crosses; and one rank does the work of a rank of so many, for peers that want of it what it wants of
    them. Times are for ranks that have a processor each.

    **Examples**

    `eupmim-dist launch --nproc 4 --threads 1 -- bench scaling`

    `eupmim-dist bench scaling --simulate --link 100 --ranks-per-node 8`
    """
    from eupmim_dist.bench.exchanges import measure_exchanges, predict
    from eupmim_dist.bench.rivals import Shape
    from eupmim_dist.bench.scaling import Cluster
    from eupmim_dist.cli.options import check_json, write_json
    from eupmim_dist.config.load import parse_config
    from eupmim_dist.parallel.agreement import agreed
    from eupmim_dist.parallel.collectives import barrier
    from eupmim_dist.parallel.world import init_world, shutdown

    worlds = _numbers(ranks, ranks_per_node)
    tables = {"optimizer": optimizer, "replicate_below": 0}
    config = parse_config({"tables": tables}, source="the options").tables
    shape = Shape(rows, dim, samples, ids_per_sample)
    joined = {"link": link * 1e9 / 8, "within": within * 1e9 / 8, "latency": latency / 1e6, "message": message / 1e6}
    world = init_world()
    if not simulate and (link, within, latency, message) != (LINK, WITHIN, LATENCY, MESSAGE):
        raise UserError("--link, --within, --latency, --message: are for --simulate; without it they are measured")
    if not simulate and world.size == 1:
        raise UserError("bench scaling: one rank exchanges nothing; launch several, or predict them with --simulate")
    found: dict[str, Any] = {}
    with agreed(world):
        check_json(json_file)
        if world.size > 1:
            here = Cluster(world.size, world.local_size, **joined)
            found["measured"] = measure_exchanges(shape, ids, config, steps, here, world)
        if simulate and world.is_main:
            clusters = [Cluster(number, ranks_per_node, **joined) for number in worlds]
            found["predicted"] = predict(shape, ids, config, steps, clusters, world.device)
        barrier(world)
    if world.is_main:
        _print(found, f"{rows:,} x {dim} {optimizer}, {samples:,} x {ids_per_sample} {ids} ids a rank and step")
        write_json(json_file, found)
    shutdown(world)


def _numbers(text: str, per_node: int) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--ranks {shown(text)}: give whole numbers, as 8,64,512") from None
    for number in numbers:
        if number < 1 or (number > per_node and number % per_node):
            raise UserError(f"--ranks {number}: at least 1, and a multiple of --ranks-per-node {per_node} beyond it")
    return numbers


def _print(found: dict[str, Any], title: str) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(title)
    if measured := found.get("measured"):
        cluster = measured["cluster"]
        nodes = f"{cluster['ranks']} ranks, {cluster['local']} a node"
        times = _table("", "ms/step", "predicted", "of it waits", "error")
        sizes = _table("", "link kB/step", "predicted", "error", "interface kB/step", "error")
        for way, one in measured["ways"].items():
            size, told, of_link = (one[f"{of}link bytes"] / 1e3 for of in ("", "interface ", "predicted "))
            waits = f"{one['waits ms/step']:,.1f}"
            step, predicted, error = _compared(one["ms/step"], one["predicted ms/step"])
            times.add_row(way, step, predicted, waits, error)
            interface = _compared(told, of_link)[::2] if told else ("not counted", "")
            sizes.add_row(way, *_compared(size, of_link), *interface)
        speeds = [f"{8 * cluster['within'] / 1e9:,.1f} Gbit/s of a rank within a node"] if cluster["local"] > 1 else []
        speeds += (
            [f"{8 * cluster['link'] / 1e9:,.1f} Gbit/s of a node's link"] if cluster["ranks"] > cluster["local"] else []
        )
        console.print(f"{nodes}; {', '.join(speeds)}")
        console.print(times)
        if cluster["ranks"] > cluster["local"]:
            console.print("what a node sends the others")
            console.print(sizes)
    if "predicted" in found:
        table = _table("ranks", "", "link MB/step", "of flat", "within node MB/step", "messages", "ms/step")
        for line in found["predicted"]:
            between, share = f"{line['between'] / 1e6:,.2f}", f"{line['of flat']:.3f}" if line["between"] else ""
            told = f"{line['within'] / 1e6:,.2f}", f"{line['messages']:,.0f}", f"{line['ms/step']:,.1f}"
            table.add_row(f"{line['ranks']:,}", line["way"], between, share, *told)
        console.print("predicted: what a node sends the others, and a rank the others of its node")
        console.print(table)
        console.print("Bytes are counted; times are estimates: what was measured of them is in docs/tables.md.")


def _compared(found: float, predicted: float) -> tuple[str, str, str]:
    return f"{found:,.1f}", f"{predicted:,.1f}", f"{100 * (predicted / found - 1):+.1f} %" if found else ""


def _table(*columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table
