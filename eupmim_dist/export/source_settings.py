"""Fine-tuning: the settings that a new training takes from the trained model it starts from."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from eupmim_dist.checkpoint.layout import CONFIG_FILE, Checkpoint, resolve
from eupmim_dist.checkpoint.manifest import manifest_of
from eupmim_dist.config.load import flat, load_config
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError, as_set


def source_settings(source: Path, run_dir: Path) -> dict[str, Any]:
    """Sections for what a configuration does not say: the `model` of a trained one, and its history length; of one
    whose weights are of a vocabulary, all of its `task` and `objective`.

    A run that has begun from this source has them itself: the source may be gone since. Raises UserError.
    """
    config: Config | None = None
    with suppress(UserError):
        begun = load_config(run_dir / CONFIG_FILE)
        config = begun if begun.train.init_from == source else None
    config = config or resolve(source).config
    found = {"model": config.model.model_dump(mode="json"), "task": {"history_length": config.task.history_length}}
    if config.task.num_tokens():
        found |= {name: getattr(config, name).model_dump(mode="json") for name in ("task", "objective")}
    return found


def compare_settings(config: Config, source: Checkpoint) -> list[str]:
    """Lines that say what is as it was in the source, defaults aside, and what is not."""
    here, there = flat(config), flat(source.config)
    defaults = {f"model.{name}": field.get_default() for name, field in type(source.config.model).model_fields.items()}
    same, others = [], []
    for key, value in there.items():
        if key.startswith("model.") or key in ("task.name", "task.history_length", "objective.name"):
            if here.get(key) != value:
                others.append(f"{key}={as_set(here.get(key))} (there {as_set(value)})")
            elif key == "model.name" or value != defaults.get(key):
                same.append(f"{key}={as_set(value)}")
    lines = [f"settings as of {source.path}: {', '.join(same)}"]
    if others:
        lines.append(f"not as there: {', '.join(others)}; --config {manifest_of(source.path)} has all of its settings")
    return lines
