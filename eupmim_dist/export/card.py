"""A model's `README.md`: what it is and how to use it, every figure from the files it was made of."""

from eupmim_dist.checkpoint.contents import evaluation_of
from eupmim_dist.checkpoint.layout import Checkpoint
from eupmim_dist.config.load import CHOICES
from eupmim_dist.config.schema import Config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.evaluation.baselines import judge_of
from eupmim_dist.evaluation.protocols import SEEN_INCLUDED

CARD_FILE = "README.md"
SETTINGS = (
    "seed",
    "tables.optimizer",
    "train.global_batch_size",
    "train.optimizer",
    "train.learning_rate",
    "train.schedule",
    "train.l2",
)
"""Told beside all of `task`, `model` and `objective`: what results depend on most."""


def model_card(checkpoint: Checkpoint, store: InteractionStore, name: str, others: list[str]) -> str:
    """Markdown with a YAML header. `name` is the path of the model in the examples, `others` its directories."""
    config = checkpoint.config
    sections = [
        _header(config),
        f"# {config.model.label} on {store.name}",
        f"A recommender with {config.model.summary()}: {config.model.ranks()}.",
        _training(checkpoint, store),
        "## Metrics",
        _valid_metric(checkpoint),
        _test_metrics(checkpoint),
        "## Settings",
        _settings(config),
        "All of them are in `config.json`.",
        "## Files",
        _files(checkpoint, others),
        "## Use",
        _use(name, config),
        f"These commands read the store `{store.name}` where the training found it, `{config.data.dir}`; `--data DIR` "
        "names another place. Fine-tuning takes the settings of the model as they are above; "
        f"`--config {name}/config.json` takes all.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _header(config: Config) -> str:
    kinds = ["multi-interest"] if config.model.num_interests > 1 else []
    tags = "\n".join(f"- {tag}" for tag in ("recommendation", *kinds, config.model.name))
    return f"---\nlibrary_name: eupmim-dist\ntags:\n{tags}\n---"


def _training(checkpoint: Checkpoint, store: InteractionStore) -> str:
    counts = store.manifest.counts
    held_out = store.rule.sentence(store.rule.sizes(store.split))
    by = ", ".join(f"{what} {version}" for what, version in checkpoint.manifest.versions.items())
    return (
        f"Trained for {checkpoint.step:,} steps on `{store.name}` (fingerprint `{store.fingerprint[:12]}`): "
        f"{counts.users:,} users, {counts.items:,} items, {counts.interactions:,} interactions; {held_out}. "
        f"Written by {by}."
    )


def _valid_metric(checkpoint: Checkpoint) -> str:
    progress, config = checkpoint.progress, checkpoint.config.evaluation
    if progress is None or progress.best_value is None:
        return "Not evaluated on the valid split."
    best = f"{config.metric} {progress.best_value:.4f} on the valid split, protocol `{config.protocol}`"
    if progress.best_step == checkpoint.step:
        return f"{best}, by which this step was chosen."
    return f"This is step {checkpoint.step:,}; the run's best so far was step {progress.best_step:,}: {best}."


def _test_metrics(checkpoint: Checkpoint) -> str:
    found = evaluation_of(checkpoint)
    if found is None:
        return ""
    metrics = {tuple(key.split("@")): value for key, value in found["metrics"].items()}
    names = list(dict.fromkeys(name for name, _ in metrics))
    lines = [f"| N | {' | '.join(names)} |", f"| ---: |{' ---: |' * len(names)}"]
    for cutoff in dict.fromkeys(cutoff for _, cutoff in metrics):
        lines.append(f"| {cutoff} | {' | '.join(f'{metrics[name, cutoff]:.4f}' for name in names)} |")
    seen = "" if checkpoint.config.evaluation.exclude_seen else f", {SEEN_INCLUDED}"
    title = f"{found['split'].capitalize()} split, protocol `{found['protocol']}`, {found['users']:,} users{seen}:"
    return title + "\n\n" + "\n".join(lines)


def _settings(config: Config) -> str:
    values = config.model_dump(mode="json")
    told = {f"{kind}.{key}": value for kind in CHOICES for key, value in values[kind].items()}
    for key in SETTINGS:
        section, _, name = key.rpartition(".")
        told[key] = (values[section] if section else values)[name]
    return "\n".join(["| setting | value |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in told.items())])


def _files(checkpoint: Checkpoint, others: list[str]) -> str:
    tables = ", ".join(f"`table.{name}` {rows:,} x {dim}" for name, (rows, dim) in checkpoint.tables.items())
    return "\n".join(
        [
            f"- `model*.safetensors`: {tables}, row i for the id i, and the network, `dense.*`",
            "- `config.json`: every setting, and size and SHA-256 of the other files",
            "- `items.parquet`, `users.parquet`: which raw id an id stands for; item 0 is padding",
            *(f"- `{name}/`: what transformers makes the {name} of" for name in others),
        ]
    )


def _use(name: str, config: Config) -> str:
    lines = [
        f"evaluate {name} --split test --protocol {judge_of(config.evaluation.protocol)}",
        f"recommend {name} --user ID --top-n 10",
        f"train --init-from {name} --set data.dir=STORE --run-dir runs/tuned",
        *([f"export {name} --out vectors"] if config.model.exports_vectors else []),
    ]
    return "\n".join("    eupmim-dist " + line for line in lines)
