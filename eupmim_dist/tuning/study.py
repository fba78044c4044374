"""The study on the disk: what is searched, pinned, and Optuna's journal of trials. One process writes it."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from eupmim_dist.config.load import flat
from eupmim_dist.config.schema import Config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError, shown
from eupmim_dist.files import check_out, read_text, write_text, writing
from eupmim_dist.tuning.space import Knob, Range

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner

PINS_FILE, JOURNAL_FILE, LOCK_FILE = "search.json", "study.journal", ".lock"
LOCK_SECONDS = 5.0
PRUNERS = ("median", "halving", "none")
TRIALS_BEFORE_PRUNING = 4
"""Done, before the first may be pruned: of fewer the median tells little."""
TRIALS_FOR_IMPORTANCE = 20
"""Done: the best tenth of them is looked at, and fewer than two are chance."""
FREE = ("data.dir", "train.log_every", "train.prefetch", "train.threads", "checkpoint.")
"""What a search that is gone on with may change: nothing that values depend on; the store is known by its content."""
MOST_TOLD = 4


def check_optuna() -> None:
    """Raises UserError where it is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("tune: needs Optuna; pip install 'eupmim-dist[tune]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Around Optuna: without its notices, which are for those who call it themselves."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def pins_of(config: Config, knobs: Sequence[Knob], pruner: str, store: InteractionStore) -> dict[str, Any]:
    """What two searches have in common if they are one, by the name of each thing."""
    searched = {knob.key for knob in knobs}
    settings = {key: value for key, value in flat(config).items() if not key.startswith(FREE) and key not in searched}
    return {
        "store": store.fingerprint,
        "pruner": pruner,
        **{f"search {knob.key}": str(knob) for knob in knobs},
        **settings,
    }


@contextmanager
def occupied(out: Path, pins: Mapping[str, Any]) -> Iterator[None]:
    """Has a search in `out` to itself, new or gone on with.

    Raises UserError where there is something else, another search, or one that is running.
    """
    check_out(out, f"--out {out}")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a directory")
    if out.exists() and not (out / PINS_FILE).exists() and any(path.name != LOCK_FILE for path in out.iterdir()):
        raise UserError(f"--out {out}: already holds something that is not a search; give another directory")
    with writing(f"--out {out}"):
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK_FILE, fallback_to_soft=False)
        try:
            lock.acquire(LOCK_SECONDS)
        except Timeout:
            raise UserError(f"--out {out}: a search is running there; wait for its end, or give another one") from None
    try:
        if (out / PINS_FILE).exists():
            _check_same(out, pins)
        else:
            write_text(out / PINS_FILE, json.dumps(pins, indent=1) + "\n")
        yield
    finally:
        lock.release()


def _check_same(out: Path, pins: Mapping[str, Any]) -> None:
    file = out / PINS_FILE
    try:
        before = json.loads(read_text(file))
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise UserError(f"{file}: cannot be read; give another --out")
    now = json.loads(json.dumps(pins))
    keys = [*before, *(now.keys() - before.keys())]
    others = [key for key in keys if before.get(key) != now.get(key) and f"search {key}" not in keys]
    if others:
        told = [f"{key} {_told(now, key)} and not {_told(before, key)}" for key in others[:MOST_TOLD]]
        told += [f"{len(others) - MOST_TOLD} more"] if len(others) > MOST_TOLD else []
        raise UserError(
            f"--out {out}: holds another search: {', '.join(told)}; give another --out, or search as before"
        )


def _told(pins: Mapping[str, Any], key: str) -> str:
    if key not in pins:
        return "nothing"
    value = pins[key]
    return value[:12] if key == "store" else value if key.startswith("search ") else shown(value)


def open_study(out: Path, pruner: str, config: Config) -> "Study":
    """The trials so far, in a directory that is `occupied`."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal = out / JOURNAL_FILE
    with quiet(), writing(journal):
        for left in out.glob(f"{JOURNAL_FILE}.*"):  # Optuna's lock of one that was killed
            left.unlink(missing_ok=True)
        _cut_to_whole_lines(journal)
        try:
            return optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal))),
                pruner=_pruner(pruner, config),
                study_name="tune",
                direction="maximize",
                load_if_exists=True,
            )
        except (ValueError, KeyError):
            raise UserError(f"{journal}: is damaged; give another --out") from None


def _cut_to_whole_lines(journal: Path) -> None:
    """A line that was being written when the search was killed would spoil the next one."""
    with suppress(FileNotFoundError), journal.open("r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def seed_sampler(study: "Study", config: Config) -> None:
    """Makes what is asked next a function of the seed and of the trials so far: a search gone on with is the same."""
    from optuna.samplers import TPESampler

    with quiet():
        seed = (config.seed + 7919 * len(study.get_trials(deepcopy=False))) % 2**32
        study.sampler = TPESampler(seed=seed, constant_liar=True)


def distributions(knobs: Sequence[Knob]) -> "dict[str, BaseDistribution]":
    """As Optuna has them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for knob in knobs:
        if not isinstance(knob, Range):
            found[knob.key] = CategoricalDistribution(knob.values)
        elif isinstance(knob.low, int):
            found[knob.key] = IntDistribution(knob.low, int(knob.high), log=knob.log, step=int(knob.step or 1))
        else:
            found[knob.key] = FloatDistribution(knob.low, knob.high, log=knob.log, step=knob.step)
    return found


def importance_of(study: "Study") -> dict[str, float]:
    """How much each setting decides about the best trials, in shares; empty where there are too few trials to say."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    if len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])) < TRIALS_FOR_IMPORTANCE:
        return {}
    with quiet():
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {key: float(share) for key, share in shares.items()} if any(shares.values()) else {}


def _pruner(name: str, config: Config) -> "BasePruner":
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    every = config.evaluation.every
    if name == "median":
        return MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING, n_warmup_steps=every + 1)
    return SuccessiveHalvingPruner(min_resource=2 * every, reduction_factor=3) if name == "halving" else NopPruner()
