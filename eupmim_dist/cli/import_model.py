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
    import torch

    from eupmim_dist import assemble
    from eupmim_dist.checkpoint.save import describe
    from eupmim_dist.checkpoint.state import model_tensors
    from eupmim_dist.config.load import apply_overrides, parse_config
    from eupmim_dist.errors import UserError
    from eupmim_dist.export.imported import model_settings, read_release, renamed
    from eupmim_dist.export.model_dir import write_model
    from eupmim_dist.parallel.world import World

    world = World(0, 1, 0, 1, torch.device("cpu"))
    released = read_release(model)
    settings = model_settings(released, model)
    settings.setdefault("data", {})["dir"] = str(data.resolve())
    apply_overrides(settings, set_ or [])
    assembled = assemble.assemble(parse_config(settings, source="--set"), world, assemble.open_store(data, world))
    name = assembled.config.model.name
    expected = model_tensors(assembled.model, assembled.tables)
    tensors = renamed(released, name, [p for p, _ in assembled.model.named_parameters()], assembled.store)
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise UserError(
                f"{model}: {key} is {tuple(tensor.shape)}, but {data} and the settings ask for "
                f"{tuple(expected[key].shape)}; use the store with the users and items it was trained on"
            )
    write_model(tensors, {**describe(assembled, 0, {}), "imported_from": model.name}, out, assembled.store)
    typer.echo(f"{name}: {len(tensors)} tensors -> {out}; try `eupmim-dist evaluate {out}`")
