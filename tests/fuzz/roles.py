"""Every place of a command line where a path stands, and what lies there."""

from dataclasses import dataclass

from tests.fuzz.artifacts import LOG_OPTIONS


@dataclass(frozen=True)
class Role:
    line: str
    """With {path} in it."""
    artifact: str | None = None
    """What lies at the path; None where something is written to it."""
    needs: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """That the name should keep, for those who go by it."""
        return "." + self.artifact.partition(".")[2] if self.artifact and "." in self.artifact else ""


TRAIN = "train --run-dir new --set train.max_steps=2"
SOURCES = {
    "log.csv": f"--format csv {LOG_OPTIONS}",
    "log.csv.gz": f"--format csv {LOG_OPTIONS}",
    "log.parquet": f"--format parquet {LOG_OPTIONS}",
    "eupmim": "--format eupmim",
    "comirec": "--format comirec",
    "sequential": "--format sequential",
    "movielens": "--format movielens",
    "fliggy": "--format fliggy",
}
READ = [
    *(Role(f"prepare {{path}} {options} --out new", source) for source, options in SOURCES.items()),
    Role(f"{TRAIN} --config {{path}}", "small.yaml", ("store",)),
    Role("train --config small.yaml --run-dir {path} --set train.max_steps=6", "run", ("small.yaml", "store")),
    Role(f'{TRAIN} --config small.yaml --set data.dir="{{path}}"', "store", ("small.yaml",)),
    Role(f"{TRAIN} --config small.yaml --init-from {{path}}", "model", ("small.yaml", "store")),
    Role(f"{TRAIN} --config small.yaml --set train.init_from={{path}}", "model", ("small.yaml", "store")),
    Role(
        "train --run-dir new --config small.yaml --set train.max_steps=6 --resume {path}",
        "run",
        ("small.yaml", "store"),
    ),
    Role("evaluate {path} --top-n 5 --json out.json", "run", ("store",)),
    Role("evaluate {path} --top-n 5 --json out.json", "model", ("store",)),
    Role("evaluate run --data {path} --top-n 5 --json out.json", "store", ("run",)),
    Role("evaluate --data {path} --baseline popularity,ease,cooccurrence --top-n 5 --json out.json", "store"),
    Role("evaluate --data {path} --baseline popularity --top-n 5 --json out.json", "held"),
    Role("evaluate run --categories {path} --diversity 0.5 --top-n 5 --json out.json", "items.csv", ("run", "store")),
    Role(
        "evaluate run --categories {path} --diversity 0.5 --top-n 5 --json out.json", "items.parquet", ("run", "store")
    ),
    Role("recommend {path} --user u1 --top-n 5 --json out.json", "run", ("store",)),
    Role("recommend {path} --user u1 --top-n 5 --json out.json", "sharded", ("store",)),
    Role("recommend model --data {path} --user u1 --top-n 5 --json out.json", "store", ("model",)),
    Role("consolidate {path} --out new", "run", ("store",)),
    Role("consolidate run --data {path} --out new", "store", ("run",)),
    Role("reshard {path} --nproc 2 --out new", "run"),
    Role("verify {path}", "run"),
    Role("verify {path}", "sharded"),
    Role("inspect {path} --all --stats --json out.json", "run"),
    Role("inspect {path} --all --stats --json out.json", "model"),
    Role("export {path} --out new", "run", ("store",)),
    Role("export {path} --format parquet --out new", "model", ("store",)),
    Role("export {path} --format authors --out new", "run", ("store",)),
    Role("export model --data {path} --out new", "store", ("model",)),
    Role("import {path} --data store --out new", "released.pt", ("store",)),
    Role("import released.pt --data {path} --out new", "store", ("released.pt",)),
    Role("config show {path}", "small.yaml"),
    Role("launch --dry-run --config-file {path} -- train", "accelerate.yaml"),
]
WRITTEN = [
    Role(f"prepare log.csv --format csv {LOG_OPTIONS} --out {{path}}", needs=("log.csv",)),
    Role("prepare eupmim --format eupmim --out {path}", needs=("eupmim",)),
    Role("synth --users 12 --items 120 --mean-length 10 --out {path}"),
    Role("train --config small.yaml --set train.max_steps=2 --run-dir {path}", needs=("small.yaml", "store")),
    Role("evaluate run --top-n 5 --json {path}", needs=("run", "store")),
    Role("recommend model --user u1 --top-n 5 --json {path}", needs=("model", "store")),
    Role("inspect run --json {path}", needs=("run",)),
    Role("consolidate run --out {path}", needs=("run", "store")),
    Role("reshard run --nproc 3 --out {path}", needs=("run",)),
    Role("export run --out {path}", needs=("run", "store")),
    Role("export model --format parquet --out {path}", needs=("model", "store")),
    Role("export model --format authors --out {path}", needs=("model", "store")),
    Role("import released.pt --data store --out {path}", needs=("released.pt", "store")),
]
