"""One page about one or more runs: `from eupmim_dist import report`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eupmim_dist import __version__, assemble
from eupmim_dist.arguments import StoreLike, path_of, several, store_dir
from eupmim_dist.checkpoint.changes import changes_of
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.training_data import popular_items
from eupmim_dist.errors import UserError, short
from eupmim_dist.evaluation.baselines import EASE_ITEMS, judge_of, quick_baselines
from eupmim_dist.evaluation.protocols import EXPLANATION
from eupmim_dist.evaluation.recommend import ItemLabels, item_labels
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.evaluation.scorers.interface import check_baselines
from eupmim_dist.files import check_out, write_text, writing
from eupmim_dist.parallel.world import World
from eupmim_dist.reporting.curves import groups_of
from eupmim_dist.reporting.examples import Example, Served, chosen_users, examples_of, served, served_lists
from eupmim_dist.reporting.figures import Evaluated, evaluated, evaluated_baselines, plot_of, rows_of
from eupmim_dist.reporting.item_map import MOST_ITEMS, ItemMap, map_of
from eupmim_dist.reporting.metrics import bytes_sent, spent
from eupmim_dist.reporting.page import NUM_STYLES, Content, render
from eupmim_dist.reporting.runs import ReportedRun, RunLike, check_same_store, runs_of, store_dir_of
from eupmim_dist.reporting.settings import differences
from eupmim_dist.telemetry.log import get_logger

TOP_N = 10
MOST_USERS = 40
WORLD = World(0, 1, 0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Written:
    """A page that was written."""

    path: Path
    notes: list[str]
    """What it lacks, and why."""

    def __str__(self) -> str:
        return f"{self.path}, {self.path.stat().st_size / 1000:,.0f} kB"


def report(
    runs: RunLike | Sequence[RunLike],
    out: Path | str = "report.html",
    *,
    data: StoreLike | None = None,
    baselines: str | Sequence[str] | None = None,
    users: int = 6,
    split: str = "test",
) -> Written:
    """Writes one HTML page about runs of one store, which needs no network; in one process, on the CPU.

    It has the curves of their trainings, figures of their best checkpoints beside baselines', what some users are
    recommended, a map of the items, where the time went, and the settings. Figures are by the protocol that the first
    run is tested by: `elmrec_direct` if that judged it, else `strict`. A run may be under way.

    Args:
        runs: what `fit` gave, or the path of a run directory; one or a list.
        out: the page; what was there is replaced.
        data: the store, where it no longer lies where the first run found it.
        baselines: of `popularity`, `ease`, `cooccurrence` and `association`; by default popularity, association and,
            of up to 5,000 items, ease. `()` for none.
        users: how many example users.
        split: `valid` or `test`: whose users.

    Raises UserError for what is no run, for runs of different stores, and where a file cannot be read or written.
    """
    file = path_of("out", out)
    _check(file, split, users)
    chosen = None if baselines is None else list(dict.fromkeys(several(baselines)))
    check_baselines(chosen or [])
    found = runs_of(runs)
    place = store_dir_of(found, None if data is None else store_dir(data))
    store = assemble.open_store(place, WORLD)
    check_same_store(found, store, named=data is not None)
    if not len(store.users(split)):
        raise UserError(f"{store.path}: split {split} has no users")
    content = _content(found, store, chosen, users, split)
    for note in content.notes:
        get_logger().warning(note)
    text = render(content)
    with writing(f"--out {file}"):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    return Written(file, content.notes)


def _check(out: Path, split: str, users: int) -> None:
    if split not in ("valid", "test"):
        raise UserError(f"--split {short(split)}: choose valid or test")
    if isinstance(users, bool) or not isinstance(users, int) or not 0 <= users <= MOST_USERS:
        raise UserError(f"--users {short(users)}: give a whole number from 0 to {MOST_USERS}")
    check_out(out, f"--out {out}")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: give a name that ends in .html")
    if out.is_dir():
        raise UserError(f"--out {out}: is a directory; give a file")
    above = next(path for path in out.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out {out}: cannot be written: {above} is no directory that takes files")


def _content(
    runs: list[ReportedRun], store: InteractionStore, chosen: list[str] | None, users: int, split: str
) -> Content:
    notes = [note for run in runs for note in _notes_on(run)]
    if len(runs) > NUM_STYLES:
        notes.append(f"there are {len(runs)} runs, and colours for {NUM_STYLES}: they repeat")
    if len({run.config.evaluation.exclude_seen for run in runs}) > 1:
        notes.append("evaluation.exclude_seen differs between these runs, so their figures do not compare")
    if chosen is None:
        chosen = quick_baselines(store)
        if "ease" not in chosen:
            notes.append(f"EASE is left out, as there are more than {EASE_ITEMS:,} items; --baseline ease adds it")
    judges = {run.name: judge_of(run.config.evaluation.protocol) for run in runs}
    for name in [name for name, judge in judges.items() if judge == EXPLANATION]:
        notes.append(f"{name}: here are its lists; what it writes is judged by `evaluate --protocol {EXPLANATION}`")
    protocol, *others = dict.fromkeys("strict" if judge == EXPLANATION else judge for judge in judges.values())
    if others:
        notes.append(
            f"these runs are judged by different protocols; all figures here are by {protocol}, as the first's"
        )
    trained = any(run.best for run in runs)
    top_n = min(TOP_N, store.num_item_rows - 1)
    work = _Work(store, split, protocol, top_n, item_labels(store), chosen_users(store, split, users if trained else 0))
    for number, run in enumerate(runs):
        work.add(number, run)
    rows = rows_of(work.found + evaluated_baselines(chosen, runs, store, split, protocol, top_n, WORLD))
    return Content(
        store=store,
        split=split,
        protocol=protocol,
        top_n=top_n,
        num_users=len(store.users(split)),
        runs=runs,
        rows=rows,
        plots=[plot_of(rows, metric) for metric in ("recall", "ndcg")] if rows else [],
        groups=groups_of(runs),
        examples=work.examples,
        served=work.served,
        maps=work.maps,
        spent=[spent(run.metrics) for run in runs],
        bytes_sent=[bytes_sent(run.metrics) for run in runs],
        differences=differences([run.config for run in runs]),
        notes=notes,
        version=__version__,
    )


def _notes_on(run: ReportedRun) -> list[str]:
    notes = []
    if run.metrics.missing:
        notes.append(f"{run.name}: {run.metrics.missing}, so it has no curves")
    if skipped := run.metrics.skipped:
        lines = "1 line" if skipped == 1 else f"{skipped:,} lines"
        notes.append(f"{run.name}: {lines} of its metrics.jsonl could not be read, and left out")
    notes += [f"{run.name}: {line}" for line in changes_of(run.path)]
    if run.best is None:
        notes.append(f"{run.name}: has no checkpoint yet, so no figures of it")
    return notes


class _Work:
    """What needs a model, of one run after another: each is held in memory only while it is looked at."""

    def __init__(
        self, store: InteractionStore, split: str, protocol: str, top_n: int, labels: ItemLabels, users: np.ndarray
    ) -> None:
        self.store, self.split, self.protocol, self.top_n = store, split, protocol, top_n
        self.labels, self.users = labels, users
        self.examples: list[Example] = examples_of(store, split, users, labels)
        self.popular, _ = popular_items(store, MOST_ITEMS)
        self.found: list[Evaluated] = []
        self.served: list[list[Served] | None] = []
        self.maps: list[ItemMap] = []

    def add(self, number: int, run: ReportedRun) -> None:
        """Evaluates a run's best checkpoint, if it has one."""
        best = run.best_now()
        if best is None:
            self.served.append(None)
            return
        trained = assemble.load_trained(best.path, WORLD, self.store.path)
        result = evaluate_model(trained, self.split, self.protocol, [self.top_n], progress=True, per_user=True)
        about = f"{run.config.model.label}, step {best.step:,}"
        self.found.append(evaluated(run.name, number, about, result, self.top_n))
        if not len(self.users):
            self.served.append(None)
            return
        if trained.model.scorer != "interests":
            self.served.append(served_lists(result, self.store, self.users, self.labels))
            return
        lists = served(trained, self.split, self.users, self.protocol, self.top_n, self.labels)
        self.served.append(lists)
        found = map_of(run.name, trained, self.popular, self.examples, lists, self.labels)
        self.maps += [] if found is None else [found]
