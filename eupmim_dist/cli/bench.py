"""`eupmim-dist bench ...`: measurements, each with its machine and command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eupmim_dist.cli.bench_elmrec import elmrec
from eupmim_dist.cli.bench_gpu import gpu
from eupmim_dist.cli.bench_scaling import scaling
from eupmim_dist.cli.options import Ids, IdsPerSample, Rows, Samples, Width
from eupmim_dist.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

bench = typer.Typer(no_args_is_help=True, help="Measure speed on this machine.")


@bench.callback()
def _group() -> None:
    """Measure speed on this machine."""


bench.command()(gpu)
bench.command()(elmrec)
bench.command()(scaling)


@bench.command()
def step(
    data: Annotated[
        Path | None, typer.Option(help="Interaction store; the configuration's data.dir where not given.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML configuration; the defaults where not given.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps per repetition.")] = 50,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions; the median is reported.")] = 5,
    plain: Annotated[
        bool, typer.Option("--plain", help="By turns with the authors' step in plain torch: dense tables, its encoder.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the measurements to this file.")] = None,
) -> None:
    """Measure samples/s of the full training step, where its time goes, and users/s of evaluation.

    **Examples**

    `eupmim-dist bench step --data data/ml-1m`

    `eupmim-dist bench step --config configs/eupmim_movielens.yaml --data data/ml-1m --plain`

    `eupmim-dist launch --nproc 2 --threads 1 -- bench step --data data/ml-1m`
    """
    from eupmim_dist.bench.step import measure_step
    from eupmim_dist.cli.options import check_json, write_json
    from eupmim_dist.config.load import load_config
    from eupmim_dist.parallel.agreement import agreed
    from eupmim_dist.parallel.world import init_world, shutdown

    world = init_world()
    with agreed(world):
        check_json(json_file)
        settings = load_config(config, [*(set_ or []), *_of_store(data)])
        measured = measure_step(settings, world, steps, repeats, plain=plain)
    if world.is_main:
        for name, value in measured.items():
            typer.echo(f"{name:26} {value:,.1f}" if isinstance(value, float) else f"{name:26} {value}")
        write_json(json_file, measured)
    shutdown(world)


@bench.command()
def checkpoint(
    data: Annotated[
        Path | None,
        typer.Option(help="Interaction store to train on meanwhile, a small one; data.dir where not given."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the table that is saved.")] = 10_000_000,
    dim: Annotated[int, typer.Option(min=1, help="Width of a row.")] = 64,
    place: Annotated[
        Path | None,
        typer.Option("--dir", help="Where to write, all ranks see it; default: the system's temporary files."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are reported.")] = 3,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as tables.optimizer=lazy_adam."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the measurements to this file.")] = None,
) -> None:
    """Measure saving, checking, loading and consolidating a checkpoint of a large table, with the memory it takes.

    Needs three times the table on the disk, and twice in memory over all ranks. Tables are updated by rowwise_adagrad
    unless set otherwise.

    **Examples**

    `eupmim-dist bench checkpoint --data data/ml-1m --rows 1000000`

    `eupmim-dist launch --nproc 2 --threads 1 -- bench checkpoint --data data/ml-1m --rows 10000000`
    """
    from eupmim_dist.bench.checkpoint import measure_checkpoint
    from eupmim_dist.cli.options import check_json, write_json
    from eupmim_dist.config.load import load_config
    from eupmim_dist.parallel.agreement import agreed
    from eupmim_dist.parallel.world import init_world, shutdown

    world = init_world()
    with agreed(world):
        check_json(json_file)
        if place is not None and not place.is_dir():
            raise UserError(f"--dir {place}: no such directory; make it first")
        settings = load_config(None, ["tables.optimizer=rowwise_adagrad", *(set_ or []), *_of_store(data)])
        measured = measure_checkpoint(settings, world, rows, dim, place, rounds)
    if world.is_main:
        _print_checkpoint(measured)
        write_json(json_file, measured)
    shutdown(world)


def _print_checkpoint(measured: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(measured["device"])
    size = f"{measured['rows']:,} x {measured['dim']} {measured['optimizer']}, {measured['checkpoint GB']:.2f} GB"
    phases = Table(
        title=f"{size}, {_counted(measured['ranks'], 'rank')}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("", "s", "rounds", "GB/s", "training lost, s", "peak MB a rank above before"):
        phases.add_column(column, justify="right" if column else "left")
    for what, phase in measured["phases"].items():
        lost = measured["training lost s"].get(what)
        phases.add_row(
            what,
            f"{phase['seconds']:.2f}",
            f"{min(phase['rounds']):.2f}-{max(phase['rounds']):.2f}",
            f"{phase['GB/s']:.2f}",
            "" if lost is None else f"{lost:.2f}",
            " ".join(f"{peak:,.0f}" for peak in phase["peak MB by rank"]),
        )
    console.print(phases)
    console.print(
        "one rank alone: " + ", ".join(f"{name} {speed:.2f} GB/s" for name, speed in measured["probes GB/s"].items())
    )


@bench.command()
def tables(
    rows: Rows = 2_000_000,
    dim: Width = 64,
    samples: Samples = 2048,
    ids_per_sample: IdsPerSample = 21,
    ids: Ids = "zipf",
    steps: Annotated[int, typer.Option(min=1, help="Counted steps of each system in a round.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, in which the systems take turns.")] = 5,
    optimizer: Annotated[
        Literal["rowwise_adagrad", "lazy_adam", "sgd", "exact"], typer.Option(help="The rivals get what is nearest.")
    ] = "rowwise_adagrad",
    systems: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="Of ours, torchrec, torchrec-dedup, torchrec-bags, ddp, ddp-dense."),
    ] = "ours,torchrec,ddp",
    row_format: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="How our rows travel.")
    ] = "float32",
    gradient_format: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="How our gradients travel.")
    ] = "float32",
    memory: Annotated[
        Literal["device", "host"], typer.Option(help="host: our rows stay in host memory beside a GPU.")
    ] = "device",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the measurements to this file.")] = None,
) -> None:
    """Measure look-up, gradient and update of one table: ours, TorchRec and nn.Embedding under DDP.

    All get the same ids in the same run, in turns. TorchRec is an extra: docs/benchmarks/torchrec-requirements.txt.
    `torchrec-dedup` and `torchrec-bags` are ways to use it that it does not offer on CPUs but that can be faster.
    `ddp` sums sparse gradients where the backend can, `ddp-dense` dense ones.

    **Examples**

    `eupmim-dist launch --nproc 2 --threads 1 -- bench tables`

    `eupmim-dist launch --nproc 2 --threads 1 -- bench tables --ids uniform --systems ours,torchrec-bags`

    `eupmim-dist bench tables --rows 40000000 --systems ours --memory host`
    """
    from eupmim_dist.bench.rivals import Shape
    from eupmim_dist.bench.tables import SYSTEMS, measure_tables
    from eupmim_dist.cli.options import check_json, write_json
    from eupmim_dist.config.load import parse_config
    from eupmim_dist.parallel.agreement import agreed
    from eupmim_dist.parallel.world import init_world, shutdown

    if unknown := set(systems.split(",")) - set(SYSTEMS):
        raise UserError(f"--systems {systems}: {min(unknown)!r} is none of {', '.join(SYSTEMS)}")
    names = [name for name in SYSTEMS if name in systems.split(",")]
    settings = {
        "optimizer": optimizer,
        "replicate_below": 0,
        "row_format": row_format,
        "gradient_format": gradient_format,
        "memory": memory,
    }
    config = parse_config({"tables": settings}, source="the options").tables
    world = init_world()
    with agreed(world):
        check_json(json_file)
        measured = measure_tables(Shape(rows, dim, samples, ids_per_sample), ids, names, config, steps, rounds, world)
    if world.is_main:
        _print_tables(measured)
        write_json(json_file, measured)
    shutdown(world)


def _of_store(data: Path | None) -> list[str]:
    """The setting of --data, which wins over others."""
    return [] if data is None else [f"data.dir={data}"]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _print_tables(measured: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"{measured['device']}, torch {measured['torch']}, {_counted(measured['threads per rank'], 'thread')} per rank"
    )
    size = f"{measured['rows']:,} x {measured['dim']} {measured['optimizer']}"
    asked = f"{measured['samples per rank']:,} x {measured['ids per sample']} {measured['ids']} ids"
    title = f"{size}, {_counted(measured['ranks'], 'rank')} x {asked}"
    speed = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("", "ms/step", "rounds", "M ids/s", "forward", "backward", "update", "peak MB"):
        speed.add_column(column, justify="right" if column else "left")
    for result in measured["systems"].values():
        phases, by_round = result["ms by phase"], result["ms/step by round"]
        fused = "backward and update" in phases
        speed.add_row(
            result["title"],
            _short(result["ms/step"]),
            f"{_short(min(by_round))}-{_short(max(by_round))}",
            f"{result['ids/s'] / 1e6:.3f}",
            _short(phases["forward"]),
            _short(phases["backward and update" if fused else "backward"]),
            "<-" if fused else _short(phases["update"]),
            " ".join(f"{value:,.0f}" + " GPU" * (where == "GPU") for where, value in result["peak MB"].items()),
        )
    console.print(speed)
    for reason in measured["left out"].values():
        console.print(reason)
    for name, ratios in measured["ratios"].items():
        told = ", ".join(f"{ratio:.2f} x {measured['systems'][rival]['title']}" for rival, ratio in ratios.items())
        if told:
            console.print(f"speed of {measured['systems'][name]['title']}: {told}")
    _print_exchanges(console, measured)


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:.0f}"


def _print_exchanges(console: "Console", measured: dict[str, Any]) -> None:
    """What our step sends, how evenly, and what it waits for."""
    from rich import box
    from rich.table import Table

    console.print(f"{measured['ids per distinct id']:.2f} ids per distinct id")
    for result in measured["systems"].values():
        if "bytes sent" in result:
            sent = Table(
                title="sent to other ranks, per rank and step",
                title_justify="left",
                box=box.SIMPLE_HEAD,
                pad_edge=False,
            )
            for column in ("", "kB", "least kB"):
                sent.add_column(column, justify="right" if column else "left")
            for kind, size in result["bytes sent"].items():
                least = result["least bytes"].get(kind)
                sent.add_row(kind, f"{size / 1e3:,.1f}", "" if least is None else f"{least / 1e3:,.1f}")
            console.print(sent)
            console.print(f"most rows served by a rank / mean: {result['imbalance']:.3f}")
        if "exposed communication %" in result:
            share = result["exposed communication %"]
            console.print(f"{result['title']}: {share:.0f} % of a step in exchanges")
        if "GB/s" in result:
            told = f"{result['title']}: {result['GB/s']:,.0f} GB/s; a copy: {measured['copy GB/s']:,.0f} GB/s"
            console.print(told)
