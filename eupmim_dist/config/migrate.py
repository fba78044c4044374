"""What earlier versions called it: configurations of checkpoints in earlier formats -> today's."""

from typing import Any

MOVED = {
    "data.history_length": "task.history_length",
    "data.min_history": "task.min_history",
    "train.num_negatives": "objective.num_negatives",
}
"""Keys of formats before 4 -> where they are since."""
REPLACED = {**MOVED, "model.hard_readout": "objective.readout (hard, or mean for what false was)"}
"""All keys of earlier versions -> what they are called now."""
RENAMED = {("model", "comirec"): "comirec_dr"}
"""Kind and name of implementations -> the name since format 4."""
CAUSAL = ("sasrec", "gru4rec")
"""Models of format 4 for which `task.num_positions` may stay open."""


def migrated(values: dict[str, Any], version: int) -> dict[str, Any]:
    """The sections of a checkpoint's configuration in today's form; `version` is the format of the checkpoint.

    Raises KeyError, TypeError or AttributeError if they are not what that format holds.
    """
    if version >= 5:
        return values
    found = {name: dict(section) if isinstance(section, dict) else section for name, section in values.items()}
    if version < 4:
        _with_task_and_objective(found)
    _without_what_did_nothing(found["objective"])
    task = found["task"]
    if task["name"] == "every_position":
        window = task.get("history_length", 50)
        if (number := task.get("num_positions")) is not None:
            task["num_positions"] = min(number, window)
        elif found["model"].get("name") not in CAUSAL:  # whose default was the whole window too
            task["num_positions"] = window
    return found


def _without_what_did_nothing(objective: dict[str, Any]) -> None:
    """Settings that are refused since format 5."""
    if objective["name"] == "sampled_softmax":
        candidates = objective.get("candidates", "uniform")
        if nothing := {"in_batch": "num_negatives", "uniform": "log_q"}.get(candidates):
            objective.pop(nothing, None)


def _with_task_and_objective(found: dict[str, Any]) -> None:
    found |= {"task": {"name": "next_item"}, "objective": {"name": "sampled_softmax", "candidates": "uniform"}}
    for before, after in MOVED.items():
        section, _, key = before.partition(".")
        if key in found[section]:
            new_section, _, new_key = after.partition(".")
            found[new_section][new_key] = found[section].pop(key)
    model = found["model"]
    if model["name"] == "comirec":
        model["name"] = RENAMED["model", "comirec"]
        found["objective"]["readout"] = "target"
    else:
        found["objective"]["readout"] = "hard" if model.pop("hard_readout", True) else "mean"
