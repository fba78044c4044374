"""What is compared: trained models, and configurations to train; found, named and checked before any work."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eupmim_dist.api import Fitted
from eupmim_dist.arguments import ConfigLike, config_of, path_of, several
from eupmim_dist.checkpoint.layout import Checkpoint, resolve
from eupmim_dist.checkpoint.origin import data_dir_of
from eupmim_dist.comparison.effort import Effort, effort_of
from eupmim_dist.config.load import Overrides
from eupmim_dist.config.schema import Config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError, short
from eupmim_dist.files import unnameable
from eupmim_dist.telemetry.log import get_logger

ModelLike = Fitted | ConfigLike
"""A training of `fit`, the path of a run, checkpoint or model, or a configuration: a YAML file, `Config` or mapping."""
Models = ModelLike | Sequence[ModelLike] | Mapping[str, ModelLike]
"""One or more, or by names of one's own."""
Variants = Mapping[str, str | Overrides]
"""By their names, the settings in which they differ from the one configuration."""


@dataclass(frozen=True)
class Trained:
    """A run, a checkpoint or a model."""

    name: str
    path: Path
    checkpoint: Checkpoint
    """Of a run its best."""
    effort: Effort

    @property
    def config(self) -> Config:
        return self.checkpoint.config


@dataclass(frozen=True)
class ToTrain:
    """A configuration."""

    name: str
    source: str
    """Where it comes from, for messages."""
    config: Config

    @property
    def own_data(self) -> Path | None:
        """The store that it names itself."""
        named = "data" in self.config.model_fields_set and "dir" in self.config.data.model_fields_set
        return self.config.data.dir if named else None


Entry = Trained | ToTrain


def entries_of(models: Models, overrides: str | Overrides, variants: Variants, baselines: Sequence[str]) -> list[Entry]:
    """Reads configurations, with the overrides, and the manifests of trained models; warns of unfinished runs.

    Raises UserError for what is neither, where two would have one name, and for variants of no or of several
    configurations.
    """
    given: list[tuple[str | None, Any]]
    if isinstance(models, Mapping):
        given = [(_checked(name), model) for name, model in models.items()]
    else:
        given = [(None, model) for model in ([models] if isinstance(models, Config) else several(models))]
    entries = [_entry(name, model, overrides) for name, model in given]
    if overrides and not any(isinstance(entry, ToTrain) for entry in entries):
        raise UserError("--set: changes configurations, and only trained models are given; leave it out")
    return _with_distinct_names([*entries, *_variants_of(entries, variants)], baselines)


def _variants_of(entries: Sequence[Entry], variants: Variants) -> list[Entry]:
    bases = [entry for entry in entries if isinstance(entry, ToTrain)]
    if variants and len(bases) != 1:
        raise UserError(f"--variant: changes the one configuration that is given, and there are {len(bases)}")
    found: list[Entry] = []
    for name, changes in variants.items():
        with named(f"--variant {_checked(name)}"):
            found.append(ToTrain(name, f"--variant {name}", config_of(bases[0].config, changes)))
    return found


def _entry(name: str | None, model: Any, overrides: str | Overrides) -> Entry:
    if isinstance(model, Config | Mapping):
        config = config_of(model, overrides)
        return ToTrain(name or config.model.name, f"configuration {name or config.model.name}", config)
    path = path_of("models", model.run_dir if isinstance(model, Fitted) else model, "a path or a configuration")
    if path.suffix in (".yaml", ".yml") or path.is_file():
        file_name = path.resolve().parent.name if path.stem == "config" else path.stem  # runs/a/config.yaml is a's
        return ToTrain(name or file_name, str(path), config_of(path, overrides))
    checkpoint = resolve(path, "best")
    _warn_if_unfinished(path, checkpoint)
    return Trained(name or _name_of(path, checkpoint), path, checkpoint, effort_of(path, checkpoint))


def _checked(name: Any) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or unnameable(name):
        raise UserError(f"models: {short(name)}: is no name that a directory could have")
    return name


def _name_of(path: Path, checkpoint: Checkpoint) -> str:
    directory = path.resolve()
    if directory.parent.name == "checkpoints":
        return f"{directory.parent.parent.name} step {checkpoint.step}"
    return directory.name


def _warn_if_unfinished(path: Path, checkpoint: Checkpoint) -> None:
    if checkpoint.is_model or checkpoint.path.resolve() == path.resolve():
        return
    last = resolve(path, "last")
    if not is_finished(last, last.config):
        steps = f"step {last.step:,} of {last.config.train.max_steps:,}"
        get_logger().warning(
            f"{path}: is not finished, {steps}; compared is its best checkpoint so far, step {checkpoint.step:,}"
        )


def is_finished(last: Checkpoint, config: Config) -> bool:
    """Whether a training by `config` has nothing to do after its last checkpoint."""
    return last.step >= config.train.max_steps or (last.progress is not None and last.progress.stopped)


def _with_distinct_names(entries: Sequence[Entry], baselines: Sequence[str]) -> list[Entry]:
    """Trained models go by their paths where their names alone would not do."""
    taken = Counter([*baselines, *(entry.name for entry in entries)])
    named = [
        replace(entry, name=str(entry.path)) if isinstance(entry, Trained) and taken[entry.name] > 1 else entry
        for entry in entries
    ]
    seen: dict[str, str] = {baseline: f"--baseline {baseline}" for baseline in baselines}
    for entry in named:
        source = entry.source if isinstance(entry, ToTrain) else str(entry.path)
        if (other := seen.get(entry.name)) is not None:
            mend = "give it once" if other == source else "rename one of them"
            raise UserError(f"{source}: has the name {entry.name}, as {other} has; {mend}")
        seen[entry.name] = source
    return named


def data_of(entries: Sequence[Entry], data: Path | None) -> Path:
    """The store to compare on: what was asked for, or the first that an entry names, or the default one."""
    if data is not None:
        return data
    for entry in entries:
        if isinstance(entry, Trained):
            return data_dir_of(entry.config, entry.path)
        if entry.own_data is not None:
            return entry.own_data
    return Config().data.dir


def check_comparable(entries: Sequence[Entry], store: InteractionStore) -> None:
    """Raises UserError if one is of another store, or would be judged by another rule."""
    for entry in entries:
        if isinstance(entry, Trained):
            trained_on = entry.checkpoint.data
            if not store.is_that_of(trained_on.fingerprint):
                raise UserError(
                    f"{entry.path}: was trained on another store ({trained_on.name}) than {store.path}; compare models "
                    "of one store"
                )
        elif entry.own_data is not None and entry.own_data.resolve() != store.path.resolve():
            raise UserError(
                f"{entry.source}: its data.dir is {entry.own_data}, and the comparison is on {store.path}; add "
                f"--set data.dir={store.path}"
            )
    rules = {entry.config.evaluation.exclude_seen: entry.name for entry in entries}
    if len(rules) > 1:
        raise UserError(
            f"evaluation.exclude_seen: is on for {rules[True]} and off for {rules[False]}; compare models of one rule "
            "(`eupmim-dist evaluate RUN --set evaluation.exclude_seen=false` judges one by the other's)"
        )


@contextmanager
def named(name: str) -> Iterator[None]:
    """Around what is done for one of them: a mistake names it. What a run directory is for one is `--out` here."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error.as_typed.replace('--run-dir', '--out')}") from error
