"""Runs command lines in forks of this process, which has imported the program and used no thread of its libraries."""

import faulthandler
import gc
import importlib
import os
import pickle
import pkgutil
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.fuzz.place import Place, Plan, Seen, seen

SECONDS = 20
EXTRA_BYTES = 2 << 30
"""Of memory, above what a process has at its start."""
ROOM = 1 << 29
"""Bytes of memory that the program is told are free: what it asks for at the least is a part of what it then takes."""
LARGEST_FILE = 1 << 30
LAZY = (
    "accelerate.commands.config",
    "accelerate.commands.launch",
    "eupmim_dist.cli.app",
    "numpy.fft",
    "numpy.ma",
    "numpy.random",
    "tensorboard.compat.tensorflow_stub.io.gfile",
    "torch._dynamo",
    "torch.distributed.elastic.multiprocessing.api",
    "torch.onnx",
    "torch.utils.tensorboard",
    "rich._emoji_codes",
    "typer._adapters",
)
"""What a command imports when it gets there."""


@dataclass(frozen=True)
class Ended:
    """How a command line ended, and what was there before it."""

    words: list[str]
    before: Seen
    code: int
    """Negative if a signal ended it."""
    hung: bool
    """It was ended here, at the time limit; its standard error then shows where it was."""
    seconds: float
    memory: int
    """Bytes that it had at most, above what this process has."""
    error: str
    """Standard error."""


def load_program() -> None:
    """Imports every module, so that a fork need not. Afterwards this process must only fork."""
    import eupmim_dist

    for module in pkgutil.walk_packages(eupmim_dist.__path__, "eupmim_dist."):
        if not module.name.endswith("__main__") and ".bench" not in module.name:
            importlib.import_module(module.name)
    from eupmim_dist.parallel import memory

    memory.available_bytes = lambda device: ROOM
    for name in LAZY:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # a fork's first collection would copy every page


def run_plan(build: Callable[[Place], Plan], base: Path, root: Path, debug: bool = False) -> tuple[Plan, list[Ended]]:
    """Makes the directory `root/here` and runs the plan's commands in it, each until `SECONDS` have passed.

    `debug`: tracebacks are shown, as by `--debug`.
    """
    place, told = Place(base, root / "here"), root / "plan"
    place.here.mkdir(parents=True)

    def begin() -> list[str]:
        plan = build(place)
        told.write_bytes(pickle.dumps((plan, seen(place.here))))
        return plan.commands[0]

    first = _run(begin, place.here, debug)
    if not told.exists():
        raise RuntimeError(f"the directory of a case could not be made:\n{first[-1]}")
    plan, before = pickle.loads(told.read_bytes())
    ended = [Ended(plan.commands[0], before, *first)]
    for command in plan.commands[1:]:
        if ended[-1].code != 0:
            break
        ended.append(Ended(command, seen(place.here), *_run(partial(list, command), place.here, debug)))
    return plan, ended


def call(function: Callable[[], None], directory: Path) -> None:
    """A function in a fork, in this directory. Raises RuntimeError with what it printed if it fails."""

    def then_version() -> list[str]:
        function()
        return ["--version"]

    code, *_, error = _run(then_version, directory, debug=True)
    if code:
        raise RuntimeError(f"exit code {code}: {error}")


def _run(words: Callable[[], list[str]], directory: Path, debug: bool) -> tuple[int, bool, float, int, str]:
    """The command line that `words` gives in the fork: what `Ended` says of it."""
    output, error = (directory.with_name(f"{directory.name}.{stream}") for stream in ("stdout", "stderr"))
    sys.stdout.flush()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _become(words, directory, output, error, debug)
    status, usage, hung = _await(pid, started + SECONDS)
    memory = (usage.ru_maxrss - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
    text = error.read_bytes().decode("utf-8", "replace")
    return os.waitstatus_to_exitcode(status), hung, time.monotonic() - started, memory, text


def _await(pid: int, deadline: float) -> tuple[int, resource.struct_rusage, bool]:
    """Its wait status and usage, and whether it had to be ended."""
    hung = False
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            with suppress(ProcessLookupError):  # what it started
                os.killpg(pid, signal.SIGKILL)
            return status, usage, hung
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL if hung else signal.SIGABRT)  # first so that it shows where it is
            hung, deadline = True, deadline + 2
        time.sleep(0.002)


def _become(words: Callable[[], list[str]], directory: Path, output: Path, error: Path, debug: bool) -> None:
    """The fork: the command line, as a shell would start it. Does not return."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(directory)
        for number, file, flags in ((0, os.devnull, os.O_RDONLY), (1, output, _NEW), (2, error, _NEW)):
            os.dup2(os.open(file, flags, 0o644), number)
        sys.stdout.reconfigure(encoding="utf-8", errors="strict")  # type: ignore[union-attr]
        if debug:
            os.environ["EUPMIM_DEBUG"] = "1"
        sys.argv = ["eupmim-dist", *words()]
        os.ftruncate(2, 0)  # what making the directory warned of is not the program's
        faulthandler.enable()
        _limit()
        from eupmim_dist.cli.app import main

        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:  # as the interpreter would
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code & 0xFF)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    statm = Path("/proc/self/statm")
    if statm.exists():  # what it holds to write into; elsewhere only what it used is known
        most = int(statm.read_text().split()[5]) * resource.getpagesize() + EXTRA_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
