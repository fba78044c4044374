"""The Typer application: one file per subcommand, registered here; an error becomes one line and an exit code."""

import os
import sys
import time
import traceback
from typing import Annotated

import typer

from eupmim_dist import __version__
from eupmim_dist.cli.attempts import end_with_launcher
from eupmim_dist.cli.audit import audit
from eupmim_dist.cli.bench import bench
from eupmim_dist.cli.compare import compare
from eupmim_dist.cli.config import config
from eupmim_dist.cli.consolidate import consolidate
from eupmim_dist.cli.doctor import doctor
from eupmim_dist.cli.evaluate import evaluate
from eupmim_dist.cli.export import export
from eupmim_dist.cli.import_model import import_model
from eupmim_dist.cli.inspect import inspect
from eupmim_dist.cli.launch import CONTEXT_SETTINGS as LAUNCH_SETTINGS
from eupmim_dist.cli.launch import launch
from eupmim_dist.cli.prepare import prepare
from eupmim_dist.cli.recommend import recommend
from eupmim_dist.cli.report import report
from eupmim_dist.cli.reshard import reshard
from eupmim_dist.cli.synth import synth
from eupmim_dist.cli.train import train
from eupmim_dist.cli.tune import tune
from eupmim_dist.cli.verify import verify
from eupmim_dist.errors import UserError, mistake_of, short
from eupmim_dist.files import unnameable

DEBUG_VARIABLE = "EUPMIM_DEBUG"

app = typer.Typer(
    name="eupmim-dist",
    help="Train, evaluate and serve multi-interest recommenders whose embedding tables are sharded over the ranks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(synth)
app.command()(prepare)
app.command()(audit)
app.command()(doctor)
app.command()(train)
app.command()(evaluate)
app.command()(compare)
app.command()(tune)
app.command()(recommend)
app.command()(report)
app.command()(consolidate)
app.command()(reshard)
app.command()(verify)
app.command()(inspect)
app.command("import")(import_model)
app.command()(export)
app.command(context_settings=LAUNCH_SETTINGS)(launch)
app.add_typer(config, name="config")
app.add_typer(bench, name="bench")


ONE_RANK = (
    *("synth", "prepare", "audit", "tune", "recommend", "report"),
    *("consolidate", "reshard", "verify", "inspect", "import", "export"),
)
"""Subcommands that write or print one thing: several ranks of them would do it several times at once."""


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"  # the environment reaches the ranks that `launch` starts
    if context.invoked_subcommand in ONE_RANK and os.environ.get("WORLD_SIZE", "1") != "1":
        raise typer.TyperException(f"{context.invoked_subcommand}: runs on one rank; start it without a launcher")
    if version:
        typer.echo(__version__)
        raise typer.Exit()


def main() -> None:
    """Runs the command line. Exits with 0 on success, 2 for the user's mistake, 1 for any other failure."""
    end_with_launcher()
    try:
        code = app(_checked(_arguments()), standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except typer.TyperException as error:  # an option or argument that Typer refuses
        code = _refuse(error.format_message())
    except Exception as error:
        code = _report(error)
    code = code if isinstance(code, int) else 0
    sys.stdout.flush()
    sys.stderr.flush()
    if "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized():
        os._exit(code)  # no destructor of the process group: see parallel.world.shutdown
    sys.exit(code)


def _arguments() -> list[str]:
    """The command line without the --local_rank=N that the deepspeed launcher adds; LOCAL_RANK says it too."""
    return [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]


def _checked(arguments: list[str]) -> list[str]:
    """Refuses what is not text, as a path too: other libraries take no such one, and no metadata could hold it."""
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise typer.TyperException("the working directory is gone; change to another one") from None
    for text in (*arguments, here):
        if unnameable(text):
            raise typer.TyperException(f"{short(text)}: is not UTF-8 text; rename what is called so")
    return arguments


def _refuse(message: str) -> int:
    """Reports what every rank of a launch meets alike: rank 0 tells it, the others give it the time to."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(3)  # the launcher stops all ranks as soon as one has gone
    elif message:  # none where the help was shown for want of arguments
        print(f"error: {UserError(' '.join(message.split())).as_typed}", file=sys.stderr)
    return 2


def _report(error: BaseException) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    mistake = mistake_of(error)
    if "torch.distributed" in sys.modules:  # a rank: another one may have the reason to tell
        from eupmim_dist.parallel.agreement import let_the_first_failure_speak

        let_the_first_failure_speak(error)
    if not getattr(error, "reported_elsewhere", False):
        hint = "" if mistake or os.environ.get(DEBUG_VARIABLE) else " (eupmim-dist --debug shows where)"
        told = mistake or UserError(" ".join(f"{type(error).__name__}: {error}".split()))
        lines = [" ".join(line.split()) for line in told.as_typed.split("\n")]
        print("error: " + "\n".join(lines) + hint, file=sys.stderr, flush=True)
    return 2 if mistake else 1
