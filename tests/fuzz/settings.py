"""(a) Settings: each key of the configuration, by `--set` or in YAML, with values at and past what it can be."""

import json
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any, Literal, get_args, get_origin

import yaml

from tests.fuzz.place import Chosen, Place, Plan, words
from tests.fuzz.values import FLOATS, yaml_value

MODELS = {
    "eupmim": [],
    "comirec_dr": ["model.dim=8"],
    "comirec_sa": ["model.dim=8"],
    "mind": ["model.dim=8"],
    "youtube_dnn": ["model.dim=8", "model.num_interests=1"],
    "sasrec": ["model.dim=8", "model.num_interests=1", "task.name=every_position", "objective.name=full_softmax"],
    "gru4rec": ["model.dim=8", "model.num_interests=1", "task.name=every_position"],
}
LONG = ("train.max_steps", "train.global_batch_size=1000000")
"""Large ones are no mistakes, and take their time: not trained with."""
RATES = [
    "train.learning_rate",
    "tables.learning_rate",
    "train.l2",
    "train.clip_norm",
    "train.weight_decay",
    "tables.weight_decay",
]
HUGE = ["1.0e+38", "1.0e+30", "1.0e+308", ".inf", "1.0e-45", "3.4e+38", "1.0e+10", "1000000.0"]
AFTERWARDS = [
    "recommend new --user u1 --top-n 3 --json out.json",
    "evaluate new --top-n 3 --json out.json",
    "verify new",
    "export new --out vectors",
    "consolidate new --out joined",
]


def draw(place: Place, random: Random) -> Plan:
    name = random.choice([*MODELS, *["eupmim"] * 6])
    sets = [f"model.name={name}", *MODELS[name]] if name != "eupmim" else []
    changed = [_setting(name, random) for _ in range(random.choice([1, 1, 1, 2]))]
    if random.random() < 0.2:
        changed = [f"{random.choice(RATES)}={random.choice(HUGE)}"]
        changed += random.choice(
            [[], ["tables.optimizer=sgd"], ["tables.optimizer=rowwise_adagrad"], ["train.optimizer=adamw"]]
        )
    what = f"settings: {' '.join(changed)[:60]}"
    long = any(change.startswith(LONG) for change in changed)
    place.take("small.yaml", "store")
    if random.random() < 0.3:
        in_file = _written(place, changed, random)
        changed = [] if in_file else changed
    options = [word for change in [*sets, *changed] for word in ("--set", change)]
    action = random.choice(["show", "show", "train", "train", "train", "train", "resume", "init", "import"])
    if long or action == "show":
        return Plan(what, [["config", "show", "small.yaml", *options, *random.choice([[], ["--describe"]])]])
    if action == "import":
        place.take("released.pt")
        return Plan(what, [[*words("import released.pt --data store --out new"), *options]])
    line = "train --config small.yaml --run-dir new --cpu"
    if action == "resume":
        place.take("run")
        line = "train --config small.yaml --run-dir run --set train.max_steps=6"
    elif action == "init":
        place.take("model")
        line += " --init-from model"
    after = random.choice(AFTERWARDS).replace("new", "run" if action == "resume" else "new")
    return Plan(what, [[*words(line), *options], words(after)])


@cache
def _fields(name: str) -> dict[str, Any]:
    from eupmim_dist.config.load import fields, load_config

    return dict(fields(load_config(None, [f"model.name={name}", *MODELS[name]])))


def _setting(name: str, random: Random) -> str:
    key, field = random.choice(list(_fields(name).items()))
    if random.random() < 0.03:
        key = random.choice(
            [key.partition(".")[0], f"{key}.x", "", ".", f"{key}.", "a" * 2000, "é.b", "\udcff", f" {key}"]
        )
    return f"{key}={_likely(field.annotation, random) if random.random() < 0.5 else yaml_value(random)}"


def _likely(annotation: Any, random: Random) -> str:
    """A value of the right type, so that more is accepted than refused."""
    inner = next((kind for kind in get_args(annotation) if kind in (int, float)), annotation)
    if get_origin(annotation) is Literal:
        return str(random.choice(get_args(annotation)))
    if inner is bool:
        return random.choice(["true", "false"])
    if inner is float:
        return random.choice([*FLOATS, "0.0", "0.001", "0.3", "0.99", "2.0", "100.0", "1.0e+10", "1.0e+20", "1.0e-10"])
    if inner is int:
        return random.choice(["1", "2", "3", "4", "5", "7", "8", "10", "24", "30", "31", "32", "100", "1000", "100000"])
    return yaml_value(random)


def _written(place: Place, changed: list[str], random: Random) -> bool:
    """Into small.yaml; False where that is no YAML that could be merged, and is written as it stands."""
    file = place.here / "small.yaml"
    text = file.read_text()
    for change in changed:
        key, _, value = change.partition("=")
        section, _, name = key.rpartition(".")
        lines = [line for line in text.splitlines() if not line.startswith(f"{section or name}:")]
        kept = (yaml.safe_load(text) or {}).get(section, {}) if section else {}
        kept = kept if isinstance(kept, dict) else {}
        inner = "".join(f"  {k}: {json.dumps(v)}\n" for k, v in kept.items() if k != name)
        text = (
            "\n".join(lines) + "\n" + (f"{section}:\n{inner}  {name}: {value}\n" if section else f"{name}: {value}\n")
        )
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        if len(changed) > 1:
            return False
    return True


def _trained(*sets: str) -> Plan:
    options = [word for change in sets for word in ("--set", change)]
    line = words("train --config small.yaml --run-dir new")
    return Plan(" ".join(sets), [[*line, *options], words("recommend new --user u1 --top-n 3 --json out.json")])


def _train(*sets: str) -> Callable[[Place], Plan]:
    def plan(place: Place) -> Plan:
        place.take("small.yaml", "store")
        return _trained(*sets)

    return plan


CHOSEN: Chosen = {
    "no-clipping": _train("train.clip_norm=.inf"),
    "dropout": _train("model.dropout=0.999999"),
    "l2": _train("train.l2=1.0e+38"),
    "rate": _train("train.learning_rate=1.0e+38"),
    "table-rate": _train("tables.learning_rate=1.0e+38", "tables.optimizer=sgd"),
    "batch": _train("train.global_batch_size=5000000"),
    "dim": _train("model.dim=1000000"),
    "long-integer": _train(f"train.global_batch_size={10**20}"),
}
