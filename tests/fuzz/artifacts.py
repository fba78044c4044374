"""The small artifacts that cases change copies of: sources of every format, stores, a run, models."""

import gzip
import json
import sys
from functools import partial
from pathlib import Path
from random import Random

from tests.fuzz.place import words
from tests.fuzz.running import call

NUM_USERS, NUM_ITEMS = 40, 30
LOG_COLUMNS = "--user-column user --item-column item --time-column time"
LOG_OPTIONS = (
    f"{LOG_COLUMNS} --attribute age --attribute gender --attribute occupation --title-column title --min-count 1"
)
SETTINGS = """\
data: {dir: store}
task: {history_length: 6}
model: {dim: 8, num_heads: 4, num_encoder_layers: 1}
objective: {num_negatives: 5}
train: {global_batch_size: 8, max_steps: 4, log_every: 1}
evaluation: {every: 2, metric: recall@5, top_n: [5]}
checkpoint: {every: 2}
"""
ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
mixed_precision: 'no'
num_machines: 1
num_processes: 2
use_cpu: true
"""
MADE_BY = [
    f"prepare log.csv --format csv {LOG_OPTIONS} --name shop --out store",
    f"prepare log.csv --format csv {LOG_OPTIONS} --split leave_one_out --name held --out held",
    "train --config small.yaml --run-dir run",
    "consolidate run --out model",
    "consolidate run --max-shard-size 2KB --out sharded",
    "export run --format authors --out released",
]


def make_artifacts(base: Path) -> None:
    """Writes them, each command in a fork: nothing that this process must not use is used in it."""
    base.mkdir()
    write_sources(base)
    call(lambda: _parquet(base), base)
    for line in MADE_BY:
        call(partial(_main, words(line)), base)
    (base / "released" / "model.pt").rename(base / "released.pt")


def write_sources(base: Path) -> None:
    """The same histories in every text format."""
    draw = Random(0)
    histories = [draw.sample(range(1, NUM_ITEMS + 1), draw.randint(6, 16)) for _ in range(NUM_USERS)]
    profiles = [((1, 18, 25, 35)[draw.randrange(4)], draw.randrange(2), draw.randrange(5)) for _ in range(NUM_USERS)]

    log = ["user,item,time,age,gender,occupation,title"]
    for user, history in enumerate(histories):
        profile = ",".join(map(str, profiles[user]))
        log += [f'u{user},i{item},{1000 + n},{profile},"Item {item}, new"' for n, item in enumerate(history)]
    _lines(base / "log.csv", log)
    (base / "log.csv.gz").write_bytes(gzip.compress((base / "log.csv").read_bytes(), mtime=0))
    _lines(base / "items.csv", ["item,category", *(f"i{item},c{item % 4}" for item in range(1, NUM_ITEMS + 1))])

    for name in ("eupmim", "comirec"):
        directory = base / name
        for part, users in {"train": range(30), "valid": range(30, 35), "test": range(35, NUM_USERS)}.items():
            lines = []
            for user in users:
                start = [user, *profiles[user]] if name == "eupmim" else [user]
                lines += [",".join(map(str, [*start, item, n])) for n, item in enumerate(histories[user])]
            _lines(directory / f"shop_{part}.txt", lines)
        _lines(directory / "shop_user_map.txt", [f"u{user},{user}" for user in range(NUM_USERS)])
        _lines(directory / "shop_item_map.txt", [f"{1000 + item},{item}" for item in range(1, NUM_ITEMS + 1)])
    movies = [f"{1000 + item}::Film {item}: a café::Drama|Comedy" for item in range(1, NUM_ITEMS + 1)]
    _lines(base / "eupmim" / "movies.dat", movies, "iso-8859-1")

    _lines(base / "sequential" / "sequential.txt", [f"{u} {' '.join(map(str, h))}" for u, h in enumerate(histories, 1)])
    maps = {"id2user": NUM_USERS, "id2item": NUM_ITEMS}
    maps_of_ids = {key: {str(n): f"{key[3]}{n}" for n in range(1, count + 1)} for key, count in maps.items()}
    _lines(base / "sequential" / "datamaps.json", [json.dumps(maps_of_ids)])

    events = [(u, item, n) for u, history in enumerate(histories, 1) for n, item in enumerate(history)]
    _lines(base / "movielens" / "ratings.dat", [f"{u}::{1000 + item}::{1 + n % 5}::{900 + n}" for u, item, n in events])
    people = [f"{u}::{'FM'[g]}::{age}::{job}::{u}-x" for u, (age, g, job) in enumerate(profiles, 1)]
    _lines(base / "movielens" / "users.dat", people)
    _lines(base / "movielens" / "movies.dat", movies, "iso-8859-1")

    bought = [f"{u},{item},pay,{900 + n}" for u, item, n in events]
    seen = [f"{u},{item},clk,{900 + n}" for u, item, n in events[::5]]
    _lines(base / "fliggy" / "user_item_behavior_history.csv", ["user,item,behaviour,time", *bought, *seen])
    _lines(base / "fliggy" / "user_profile.csv", [f"{u},{a},{g},{job},x" for u, (a, g, job) in enumerate(profiles, 1)])

    (base / "small.yaml").write_text(SETTINGS)
    (base / "accelerate.yaml").write_text(ACCELERATE)


def _lines(file: Path, lines: list[str], encoding: str = "utf-8") -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(("\n".join(lines) + "\n").encode(encoding))


def _parquet(base: Path) -> None:
    import polars as pl

    pl.read_csv(base / "log.csv").write_parquet(base / "log.parquet")
    pl.read_csv(base / "items.csv").write_parquet(base / "items.parquet")


def _main(line: list[str]) -> None:
    from eupmim_dist.cli.app import main

    sys.argv = ["eupmim-dist", *line]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"{' '.join(line)}: exit code {ended.code}") from None
