"""`eupmim-dist inspect`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from eupmim_dist.cli.options import LastOption, check_json, write_json


def inspect(
    path: Annotated[Path, typer.Argument(help="A run directory, a checkpoint, or a consolidated or imported model.")],
    stats: Annotated[bool, typer.Option("--stats", help="Also min, max, mean and std of each tensor.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List the tensors of the network too.")] = False,
    last: LastOption = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all of it to this file too.")] = None,
) -> None:
    """Show what is in a checkpoint or model: where it comes from, how good it is, its tables.

    Tables of a checkpoint lie in as many pieces as ranks held them. Hashes are not compared: `verify` does that.

    **Examples**

    `eupmim-dist inspect runs/example`

    `eupmim-dist inspect models/example --all --stats --json contents.json`
    """
    from eupmim_dist.checkpoint.contents import contents
    from eupmim_dist.checkpoint.layout import num_bytes, resolve
    from eupmim_dist.telemetry.progress import byte_progress

    check_json(json_file)
    checkpoint = resolve(path, "last" if last else "best")
    with byte_progress("inspecting", num_bytes(checkpoint.path)) as on_bytes:
        found = contents(checkpoint, stats, on_bytes)
    _print(found, stats, every)
    write_json(json_file, found, allow_nan=False)


def _print(found: dict[str, Any], stats: bool, every: bool) -> None:
    _table(None, _about(found), f"{found['kind']} {found['path']}")
    rows = []
    for name, tensor in found["tensors"].items():
        if not every and not name.startswith("table"):
            continue
        shape = " x ".join(f"{size:,}" for size in tensor["shape"]) or "one number"
        row = [name, shape, tensor["dtype"], f"{tensor['bytes']:,}", str(tensor["pieces"])]
        if stats:
            *values, not_finite = tensor["stats"].values()
            row += [*("" if value is None else f"{value:.3g}" for value in values), f"{not_finite:,}"]
        rows.append(row)
    measured = ("min", "max", "mean", "std", "not finite") if stats else ()
    _table(("tensor", "shape", "type", "bytes", "pieces", *measured), rows)
    totals = [
        (kind, f"{total['tensors']:,}", f"{total['numbers']:,}", f"{total['bytes'] / 1e6:,.1f}")
        for kind, total in found["totals"].items()
    ]
    _table(("kind", "tensors", "numbers", "MB"), totals)


def _table(columns: tuple[str, ...] | None, rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    from rich.table import Table

    from eupmim_dist.cli.display import print_table

    table = Table(title=title, title_justify="left", show_header=columns is not None)
    for name in columns or ():
        number = name not in ("tensor", "shape", "type", "kind")
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*row)
    print_table(table)


def _about(found: dict[str, Any]) -> list[tuple[str, str]]:
    model, data, training, valid = found["model"], found["data"], found["training"], found["valid"]
    lines = [
        ("model", f"{model['name']}: {found['summary']}"),
        ("step", f"{found['step']:,}"),
        ("trained on", f"{data['name']}, fingerprint {data['fingerprint'][:12]}, then at {data['dir']}"),
    ]
    if found["imported_from"]:
        lines.append(("imported from", found["imported_from"]))
    if found["ranks"]:
        lines.append(("written by", f"{found['ranks']} ranks"))
    if training.get("best_value") is not None:
        value = (
            f"{valid['metric']} {training['best_value']:.4f}, {valid['protocol']}, at step {training['best_step']:,}"
        )
        lines.append(("best on valid", value))
    if found["evaluation"]:
        evaluation = found["evaluation"]
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in list(evaluation["metrics"].items())[:4])
        lines.append(
            (f"on {evaluation['split']}", f"{metrics}, {evaluation['protocol']}, {evaluation['users']:,} users")
        )
    lines += [("resumed with", line) for line in found["resumed_with"]]
    lines.append(("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())))
    return [*lines, ("files", str(len(found["files"])))]
