"""What to run next with a trained run: command lines to be copied, with its paths and the id of a user of its data."""

import shlex
import shutil
import sys
from pathlib import Path

from eupmim_dist.data.store import InteractionStore
from eupmim_dist.evaluation.baselines import judge_of, lists_of, quick_baselines
from eupmim_dist.evaluation.scorers.interface import recommends
from eupmim_dist.train.state import Assembled

MOST_TRIED = 1000
"""Users of whom one should have an id that can be shown."""
LONGEST_ID = 40


def next_steps(trained: Assembled, run_dir: Path) -> list[str]:
    """For a shell: evaluate it beside baselines, recommend, write a report, look at the curves."""
    run, ours, items = shlex.quote(str(run_dir)), _program("eupmim-dist"), trained.store.num_item_rows - 1
    protocol = judge_of(trained.config.evaluation.protocol)
    named = "" if protocol == "strict" else f" --protocol {protocol}"
    beside = f" --baseline {','.join(quick_baselines(trained.store))} --top-n {min(items, 10)}"
    lines = [f"{ours} evaluate {run}{named}{beside if lists_of(protocol) else ''}"]
    user = _some_user(trained.store)
    if user is not None and recommends(trained.model.scorer):
        lines.append(
            f"{ours} recommend {run} --user{'=' if user.startswith('-') else ' '}{shlex.quote(user)} --top-n 5"
        )
    lines.append(f"{ours} report {run} --out {shlex.quote(str(run_dir / 'report.html'))}")
    # Of the directory above, where runs are called by their own directories and compared with others.
    return [*lines, f"{_program('tensorboard')} --logdir {shlex.quote(str(run_dir.parent))}"]


def _some_user(store: InteractionStore) -> str | None:
    """A test user's raw id, if some can be typed."""
    ids = store.raw_user_ids(store.users("test")[:MOST_TRIED])
    return next((raw for raw in ids if raw and raw.isprintable() and len(raw) <= LONGEST_ID), None)


def _program(name: str) -> str:
    """How a program of this Python's environment is called from here."""
    beside, found = Path(sys.executable).with_name(name), shutil.which(name)
    if not beside.exists() or (found is not None and beside.samefile(found)):
        return name
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))
