"""(e) Metadata that was edited, its hashes made to fit: manifests, indexes, headers of tensors, records of a run."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.fitting import WRONG, adopt_store, change_json, checkpoints, fit_checkpoint, fit_checksum, fit_store
from tests.fuzz.place import Chosen, Place, Plan, words
from tests.fuzz.tensors import change_header, change_release, change_values, set_values
from tests.fuzz.text import changed
from tests.fuzz.values import changed_json, json_value

ANY = [
    "evaluate {path} --top-n 3 --json out.json",
    "recommend {path} --user u1 --user u2 --top-n 3 --json out.json",
    "export {path} --out new",
    "export {path} --format parquet --out new",
    "export {path} --format authors --out new",
    "verify {path}",
    "inspect {path} --all --stats --json out.json",
    "train --config small.yaml --run-dir tuned --set train.max_steps=2 --init-from {path}",
]
OF_RUN = [
    "train --config small.yaml --run-dir {path} --set train.max_steps=6",
    "train --config small.yaml --run-dir other --set train.max_steps=6 --resume {path}",
    "consolidate {path} --out new",
    "reshard {path} --nproc 2 --out new",
]
OF_STORE = [
    "train --config small.yaml --run-dir tuned --set train.max_steps=2",
    "train --config small.yaml --run-dir run --set train.max_steps=6",
    "train --config small.yaml --run-dir tuned --set train.max_steps=2 --init-from model",
    "evaluate --data store --baseline popularity,ease,cooccurrence --top-n 3 --json out.json",
    "evaluate run --top-n 3 --json out.json",
    "recommend run --user u1 --top-n 3 --json out.json",
    "consolidate run --out new",
    "export model --out new",
    "import released.pt --data store --out new",
]
AFTERWARDS = {
    "consolidate": "recommend new --user u1 --top-n 3 --json out.json",
    "reshard": "verify new",
    "import": "verify new",
}


def draw(place: Place, random: Random) -> Plan:
    match random.choice(["manifest"] * 3 + ["header"] * 2 + ["weights"] * 2 + ["store"] * 2 + ["record", "release"]):
        case "manifest":
            place.take("store", "small.yaml")
            name = random.choice(["run", "model", "sharded"])
            directory = random.choice(checkpoints(place.take(name)))
            what = _manifest(directory, random)
        case "header":
            place.take("store", "small.yaml")
            name = random.choice(["run", "model", "sharded"])
            directory = random.choice(checkpoints(place.take(name)))
            file = random.choice(sorted(directory.glob("*.safetensors")))
            what = "header: " + change_header(file, random)
            fit_checkpoint(directory)
        case "weights":
            place.take("store", "small.yaml")
            name = random.choice(["run", "run", "model", "sharded"])
            for directory in checkpoints(place.take(name)):
                what = "weights: " + change_values(directory, random)
                fit_checkpoint(directory)
        case "store":
            return _store(place, random)
        case "record":
            return _record(place, random)
        case _:
            place.take("store")
            what = "released: " + change_release(place.take("released.pt"), random)
            return Plan(what, [words("import released.pt --data store --out new"), words(AFTERWARDS["consolidate"])])
    line = random.choice([*ANY, *(OF_RUN if name == "run" else [])])
    if name == "run" and random.random() < 0.2 and "--run-dir {path}" not in line:
        return _plan(f"{what} of {name}", line, str(directory.relative_to(place.here)))
    return _plan(f"{what} of {name}", line, name)


def _plan(what: str, line: str, path: str) -> Plan:
    commands = [words(line, path=path)]
    if (command := commands[0][0]) in AFTERWARDS:
        commands.append(words(AFTERWARDS[command]))
    return Plan(what, commands)


def _manifest(directory: Path, random: Random) -> str:
    """Changes the manifest of a step or model, or the index of a sharded one."""
    indexes = list(directory.glob("*.index.json"))
    [file] = [path for path in (directory / "manifest.json", directory / "config.json") if path.exists()]
    if indexes and random.random() < 0.5:
        indexes[0].write_text(changed_json(json.loads(indexes[0].read_text()), random))
        fit_checkpoint(directory)
        return "index"
    if random.random() < 0.05:
        what, content = changed(file.read_bytes(), random)
        file.write_bytes(content)
        return f"{file.name} ({what})"
    if random.random() < 0.3:
        change_json(file, lambda manifest: _change_entry(manifest, directory, random))
        what = "entries"
    else:
        content = json.loads(file.read_text())
        checksum = content.pop("checksum", None)
        section = random.choice([None, None, *content])
        if section is None:
            text = changed_json(content, random)
        else:
            held = dict(content) | {section: "@changed@"}
            text = json.dumps(held).replace('"@changed@"', changed_json(content[section], random))
        with suppress(*WRONG):
            if checksum and text.rstrip().endswith("}"):
                text = text.rstrip()[:-1] + f', "checksum": "{checksum}"}}'
        file.write_text(text)
        what = f"manifest {section or ''}"
    fit_checksum(file)
    return what


def _change_entry(manifest: dict[str, Any], directory: Path, random: Random) -> None:
    """Of the files that it lists: their names and sizes."""
    files = manifest["files"]
    name = random.choice(list(files))
    match random.randrange(6):
        case 0:  # a file beside the directory
            (directory.parent / "aside.safetensors").write_bytes((directory / name).read_bytes())
            files["../aside.safetensors"] = files.pop(name)
        case 1:
            files[str(directory / name)] = files.pop(name)
        case 2:
            files[random.choice(["", ".", "..", "nowhere", "a\0b", "\ud800", "x" * 300])] = files[name]
        case 3:
            del files[name]
        case 4:
            files[name][random.choice(["size", "sha256"])] = json_value(random)
        case _:
            renamed = random.choice(
                ["shard-x.safetensors", "a b.safetensors", "x[1].safetensors", ".hidden.safetensors", "x"]
            )
            (directory / name).rename(directory / renamed)
            files[renamed] = files.pop(name)


def _store(place: Place, random: Random) -> Plan:
    store = place.take("store", "run", "model", "small.yaml", "released.pt")
    file = store / "dataset.json"
    file.write_text(changed_json(json.loads(file.read_text()), random))
    if random.random() < 0.5:
        with suppress(*WRONG):
            fit_store(store)
    adopt_store_again(place, store)
    return _plan("dataset.json", random.choice(OF_STORE), "")


def adopt_store_again(place: Place, store: Path) -> None:
    """Keeps the text of dataset.json, which fitting would write anew, such as without a key that it has twice."""
    file = store / "dataset.json"
    text = file.read_text()
    adopt_store(place.here, store)
    file.write_text(text)


def _record(place: Place, random: Random) -> Plan:
    """What a run keeps beside its checkpoints."""
    run = place.take("run", "store", "small.yaml")
    name = random.choice(["evaluation.json", "config.yaml", "metrics.jsonl", ".lock"])
    file = run / name
    content = file.read_bytes() if file.exists() else b"process 1 on x\n"
    if name == "evaluation.json" and random.random() < 0.8:
        content = changed_json(json.loads(content), random).encode("utf-8", "surrogatepass")
    elif name == "metrics.jsonl" and random.random() < 0.5:
        lines = content.splitlines()
        lines[-1] = changed_json(json.loads(lines[-1]), random).encode("utf-8", "surrogatepass")
        content = b"\n".join(lines)
    else:
        content = changed(content, random)[1]
    file.write_bytes(content)
    return _plan(name, random.choice([*OF_RUN, *ANY]), "run")


def _chosen(name: str, line: str, change: Callable[[Path], None]) -> Callable[[Place], Plan]:
    """`change` of each checkpoint of an artifact, its hashes fitting again."""

    def plan(place: Place) -> Plan:
        place.take("store", "small.yaml")
        for directory in checkpoints(place.take(name)):
            change(directory)
            fit_checkpoint(directory)
        return _plan(f"chosen change of {name}", line, name)

    return plan


def _in_manifest(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def changed_manifest(directory: Path) -> None:
        for name in ("manifest.json", "config.json"):
            change_json(directory / name, change)

    return changed_manifest


RECOMMEND, INSPECT = ANY[1], ANY[6]
CHOSEN: Chosen = {
    "large-weights": _chosen("model", RECOMMEND, lambda directory: set_values(directory, "", 1e38)),
    "data-is-text": _chosen("run", INSPECT, _in_manifest(lambda manifest: manifest.update(data="shop"))),
    "nan-in-optimizer": _chosen(
        "run", OF_RUN[0], lambda directory: set_values(directory, "table_optimizer", float("nan"))
    ),
    "no-tables": _chosen("model", RECOMMEND, _in_manifest(lambda manifest: manifest.pop("tables"))),
    "files-are-a-list": _chosen("model", RECOMMEND, _in_manifest(lambda manifest: manifest.update(files=[]))),
    "no-versions": _chosen("model", INSPECT, _in_manifest(lambda manifest: manifest.pop("versions"))),
    "best-is-text": _chosen(
        "run", RECOMMEND, _in_manifest(lambda manifest: manifest["training"].update(best_step="x"))
    ),
    "nan-weights": _chosen("model", RECOMMEND, lambda directory: set_values(directory, "table.item", float("nan"))),
    "nan-in-run": _chosen("run", OF_RUN[2], lambda directory: set_values(directory, "dense.", float("nan"))),
}
