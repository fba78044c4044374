"""Every command of the README, as it is written and in its order, on small example data."""

import re
import shlex
import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.runs import command_line

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "make train": "sets up an environment",
    "make test": "runs this",
    "tensorboard ": "a server",
    "eupmim-dist prepare downloads/": "data to be downloaded",
    "eupmim-dist synth --users 1000000 ": "large",
    "eupmim-dist launch --nnodes 2 ": "two hosts",
    "eupmim-dist launch --nproc 2 --threads 1 -- bench ": "measures for a minute; tests/unit/test_bench.py",
    "eupmim-dist launch --mixed-precision ": "tests/e2e/test_launch.py",
    "eupmim-dist launch --nproc 2 --cpu ": "tests/e2e/test_launch.py",
    "eupmim-dist launch --config-file ": "tests/e2e/test_zero.py",
    "eupmim-dist import ": "a released model to be downloaded",
}
"""What is not run here, by how it begins, and why."""
STEPS = 8


def commands() -> list[str]:
    """The indented lines that are commands, with the lines that go on with one, and without comments."""
    found, open_line = [], ""
    for line in (ROOT / "README.md").read_text().splitlines():
        if open_line or re.match(r"    (eupmim-dist|make|tensorboard) ", line):
            open_line += line.strip().removesuffix("\\")
            if not line.endswith("\\"):
                found.append(shlex.join(shlex.split(open_line, comments=True)))
                open_line = ""
    return found


def elsewhere(command: str) -> bool:
    return any(command.startswith(start) for start in ELSEWHERE)


def smaller(config: Path) -> None:
    """A configuration of few steps, in place."""
    text = config.read_text()
    text = re.sub(r"max_steps: \d+", f"max_steps: {STEPS}", text)
    text = re.sub(r"warmup_steps: \d+", "warmup_steps: 2", text)
    config.write_text(re.sub(r"every: \d+", f"every: {STEPS // 2}", text))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout as `make train` leaves it, smaller, and the files that the README takes for a user's."""
    place = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "configs", place / "configs")
    for config in (place / "configs").rglob("*.yaml"):
        if config.parent.name != "accelerate":
            smaller(config)
    for seed, name in enumerate(("example", "june")):
        synth = f"synth --users 200 --items 300 --mean-length 15 --seed {seed} --out {place}/data/{name}"
        assert command_line(synth) == 0
    rows = [(user, (7 * user + 3 * step) % 40, 100 * step + user) for user in range(1, 60) for step in range(9)]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(place / "log.csv")
    pl.DataFrame(rows, schema=["customer", "sku", "at"], orient="row").with_columns(
        segment=pl.col("customer") % 3, region=pl.lit("north"), name=pl.format("Item {}", "sku")
    ).write_parquet(place / "log.parquet")
    titles = pl.read_parquet(place / "data/example/items.parquet")
    titles.select(item="raw_id", category=pl.col("title").str.slice(0, 8)).write_csv(place / "items.csv")
    return place


def test_what_is_not_run_is_there() -> None:
    for start in ELSEWHERE:
        assert any(command.startswith(start) for command in commands()), start


def test_all_commands_work_as_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    written = [command for command in commands() if not elsewhere(command)]
    assert len(written) > 24
    for command in written:
        code = command_line(command.removeprefix("eupmim-dist "))
        told = capfd.readouterr()
        assert code == 0, f"{command}\n{told.out[-2000:]}\n{told.err[-2000:]}"
    for written_file in ("audit.json", "metrics.json", "recommendations.parquet", "ab.html", "vectors/items.npy"):
        assert (place / written_file).is_file()
