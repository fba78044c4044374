"""What is done for one model after another: trained or loaded, and evaluated."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eupmim_dist import api, assemble
from eupmim_dist.checkpoint.layout import Checkpoint, resolve
from eupmim_dist.checkpoint.origin import check_same_data
from eupmim_dist.checkpoint.run_dir import find_start
from eupmim_dist.comparison.effort import Effort, effort_of
from eupmim_dist.comparison.entries import Entry, ToTrain, Trained, is_finished, named
from eupmim_dist.comparison.rows import Kind, Measured, measured
from eupmim_dist.config.schema import Config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.baselines import choose_history
from eupmim_dist.evaluation.diversity import Variety
from eupmim_dist.evaluation.explanations import check_explained
from eupmim_dist.evaluation.judging import judge
from eupmim_dist.evaluation.runner import Result, evaluate_by, ranking_of
from eupmim_dist.evaluation.scorers.interface import make_scorer
from eupmim_dist.parallel.agreement import agreed, decided_by_main
from eupmim_dist.parallel.world import World
from eupmim_dist.tasks.asking import AskingTask
from eupmim_dist.train.room import without_memory
from eupmim_dist.train.skipped import Diverged
from eupmim_dist.train.state import Assembled, Setup
from eupmim_dist.training import the_only_training, train_alone

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rules:
    """What all are judged by."""

    world: World
    store: InteractionStore
    split: str
    protocol: str
    top_n: int | None
    """None of what is no list."""
    variety: Variety | None
    """Of categories, to measure only."""
    cpu: bool


@dataclass(frozen=True)
class Training:
    """A configuration with one seed, and where its run is."""

    entry: ToTrain
    seed: int
    run_dir: Path
    finished: bool
    """By an earlier comparison."""

    @property
    def name(self) -> str:
        return f"{self.entry.name} seed {self.seed}"

    @property
    def config(self) -> Config:
        return self.entry.config.model_copy(update={"seed": self.seed})


def trainings_of(entries: Sequence[Entry], seeds: Sequence[int], out: Path, rules: Rules) -> list[Training]:
    """What is to be trained or was, each configuration found to be trainable; collective."""
    world, trainings = rules.world, []
    for entry in entries:
        if not isinstance(entry, ToTrain):
            continue
        with named(entry.name):
            assemble.trainable(entry.config, world, rules.store)
        for seed in seeds or [entry.config.seed]:
            run_dir = out / f"{entry.name}-seed{seed}"
            training = Training(entry, seed, run_dir, finished=False)
            with named(training.name), the_only_training():
                last = find_start(run_dir, "auto", training.config, world).checkpoint
                if last is not None:
                    check_same_data(last, rules.store)
                    _check_goes_on(training, last)
                elif (source := entry.config.train.init_from) is not None:
                    decided_by_main(world, partial(resolve, source))
            finished = last is not None and is_finished(last, entry.config)
            trainings.append(Training(entry, seed, run_dir, finished))
    return trainings


def check_texts_compare(entries: Sequence[Entry], rules: Rules) -> None:
    """Raises UserError for one that does not explain, or if people's texts are not cut alike for all."""
    cut: dict[tuple[str, int], str] = {}
    for entry in entries:
        with named(entry.name):
            shape = assemble.shape_of_data(entry.config, rules.store)
            model = without_memory(entry.config, shape) or assemble.make_model(entry.config, shape)
            task = assemble.make_task(entry.config, rules.world, rules.store, model)
            check_explained((model, task), rules.store, rules.split)
            assert isinstance(task, AskingTask), "check_explained makes sure"
            by = f"{entry.name} by {task.vocabulary.name} at {task.max_answer_tokens} tokens"
            cut.setdefault((task.vocabulary.content, task.max_answer_tokens), by)
    if len(cut) > 1:
        raise UserError(
            f"task.tokenizer, task.max_answer_tokens: what people wrote is cut for {', for '.join(cut.values())}; "
            "compare models for which they are alike"
        )


def _check_goes_on(training: Training, last: Checkpoint) -> None:
    """Raises UserError if what was trained there, so far, is not what the configuration would have trained."""
    now, before = training.config, last.config
    if last.step > now.train.max_steps:
        why = f"has trained {last.step} steps, more than train.max_steps {now.train.max_steps}"
    elif last.progress is not None and last.progress.stopped and now.evaluation.patience != before.evaluation.patience:
        why = f"has ended early by evaluation.patience {before.evaluation.patience}, not {now.evaluation.patience}"
    else:
        return
    raise UserError(f"{training.run_dir}: {why}; give another --out")


def setup_of_baselines(entries: Sequence[Entry], rules: Rules) -> Setup:
    """They leave out what the models do."""
    config = Config()
    if entries:
        config.evaluation.exclude_seen = entries[0].config.evaluation.exclude_seen
    return assemble.without_model(config, rules.world, rules.store)


def of_trained(entry: Trained, rules: Rules, say: Say) -> Measured:
    say(f"{entry.name}: evaluating")
    with named(entry.name):
        model = api.load(entry.path, data=rules.store, cpu=rules.cpu)
        return _evaluated(model, entry.name, None, entry.effort, rules)


def of_training(training: Training, rules: Rules, say: Say) -> Measured | str | None:
    """Why it failed, if the training diverged; None if it was asked to stop."""
    with named(training.name):
        if training.finished:
            say(f"{training.name}: finished before, evaluating")
        else:
            say(f"{training.name}: training")
            config = training.config.model_copy(deep=True)
            config.data.dir = rules.store.path
            try:
                run = train_alone(config, training.run_dir, rules.world)
            except Diverged as error:
                return error.as_typed
            if run.asked_to_leave:
                return None
            del run  # the optimizers' state is twice as large as the model
        model = api.load(training.run_dir, data=rules.store, cpu=rules.cpu)
        effort = decided_by_main(rules.world, lambda: effort_of(training.run_dir, resolve(training.run_dir, "best")))
        return _evaluated(model, training.entry.name, training.seed, effort, rules)


def _evaluated(model: Assembled, name: str, seed: int | None, effort: Effort, rules: Rules) -> Measured:
    name += model.config.model.remark
    dense = sum(parameter.numel() for parameter in model.model.parameters())
    tables = sum(shard.spec.rows * shard.spec.dim for shard in model.tables.shards.values())
    result, seconds = _timed(partial(_judged, model, rules))
    kind: Kind = "trained" if seed is None else "configuration"
    items = rules.store.num_item_rows - 1
    return measured(name, kind, seed, result, items, (dense, tables), effort, seconds)


def _judged(model: Assembled, rules: Rules) -> Result:
    cutoffs = [] if rules.top_n is None else [rules.top_n]
    return judge(model, rules.split, rules.protocol, cutoffs, variety=rules.variety, progress=True, per_user=True)


def of_baseline(name: str, setup: Setup, rules: Rules, say: Say) -> Measured:
    top_n = rules.top_n
    assert top_n is not None, "baselines make lists"
    say(f"{name}: evaluating")
    with agreed(rules.world):
        started = time.perf_counter()
        scorer = make_scorer(name, ranking_of(setup))
        effort = Effort(time.perf_counter() - started)
        choose_history(scorer, name, setup, top_n, rules.protocol)
        result, seconds = _timed(
            lambda: evaluate_by(
                scorer,
                name,
                setup,
                rules.split,
                rules.protocol,
                [top_n],
                variety=rules.variety,
                progress=True,
                per_user=True,
            )
        )
    return measured(name, "baseline", None, result, rules.store.num_item_rows - 1, None, effort, seconds)


def _timed(evaluate: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = evaluate()
    return result, time.perf_counter() - started
