"""`eupmim-dist config show`."""

from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import typer

config = typer.Typer(no_args_is_help=True, help="Look at configurations.")


@config.callback()
def _group() -> None:
    """Look at configurations."""


@config.command()
def show(
    file: Annotated[Path | None, typer.Argument(help="YAML configuration; the defaults where not given.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
    ] = None,
    describe: Annotated[bool, typer.Option("--describe", help="Explain every key instead.")] = False,
) -> None:
    """Print a configuration with every default filled in, or explain the keys.

    Which keys `task`, `model` and `objective` have depends on their `name`.

    **Examples**

    `eupmim-dist config show configs/eupmim_movielens.yaml`

    `eupmim-dist config show --describe --set model.name=sasrec`
    """
    from eupmim_dist.config.load import dump_config, fields, load_config
    from eupmim_dist.config.registry import names

    loaded = load_config(file, set_ or [])
    if not describe:
        typer.echo(dump_config(loaded), nl=False)
        return
    for key, field in fields(loaded):
        default = "" if field.is_required() else f" [{field.get_default(call_default_factory=True)}]"
        among = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        kind, _, name = key.partition(".")
        among = tuple(names(kind)) if name == "name" else among
        choices = f" ({' | '.join(map(str, among))})" if len(among) > 1 else ""
        typer.echo(f"{key}{default}{choices}\n    {field.description or ''}")
