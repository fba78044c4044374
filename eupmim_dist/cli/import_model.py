"""`eupmim-dist import`."""

from pathlib import Path
from typing import Annotated

import typer


def import_model(
    model: Annotated[Path, typer.Argument(help="The authors' released model.pt, of E-UPMiM or of ComiRec.")],
    data: Annotated[Path, typer.Option(help="Interaction store with the same users and items.")],
    out: Annotated[Path, typer.Option(help="Directory to write the model to.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What the tensors do not tell, such as model.num_levels."),
    ] = None,
) -> None:
    """Turn a released model.pt into a model directory that `evaluate` and `recommend` read.

    Which model it is, its sizes and its layers are read from the tensors. Number of heads, propagation levels and,
    for E-UPMiM, the history length are not in them: they are the released defaults (4, 3 and 10) unless set.
    Only tensors are read, and only finite floats are taken; `export --format authors` is the way back.

    **Examples**

    `eupmim-dist import eupmim_movielens.pt --data data/ml-1m --out models/released`

    `eupmim-dist evaluate models/released --protocol seed --top-n 10`
    """
    from eupmim_dist.convert import import_release

    name, number = import_release(model, data, out, set_ or [])
    typer.echo(f"{name}: {number} tensors -> {out}; try `eupmim-dist evaluate {out}`")
