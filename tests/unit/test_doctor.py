"""`doctor`: each thing that can be wrong with a launch is made, by fakes, and told with its mend."""

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from eupmim_dist.config.load import dump_config
from eupmim_dist.doctor import examine, links, together
from eupmim_dist.doctor.checks import check_facts, clocks
from eupmim_dist.doctor.facts import Facts, room_in_containers
from eupmim_dist.doctor.findings import Finding
from eupmim_dist.parallel import descriptors
from eupmim_dist.parallel.board import Board
from eupmim_dist.parallel.world import World
from tests.runs import WORLD, command_line, config_of

VERSIONS = {"eupmim_dist": "0.1.0 (aa)", "Python": "3.11.7", "torch": "2.13", "accelerate": "1.15", "numpy": "2.4"}
SOUND = Facts(
    rank=0,
    host="node0",
    local_size=2,
    versions=VERSIONS | {"deepspeed": "0.19"},
    kind="cpu",
    device="a processor",
    cores=2,
    unseen_gpu=False,
    settings={"GLOO_SOCKET_IFNAME": "eth0"},
    open_files=(1024, 4096),
    locked_memory=(65536, 65536),
    lacks_triton=None,
    free={"cpu": 8_000_000_000},
    config="112233",
    needed={"cpu": 1_000_000_000},
    store="aabbcc",
)
GPU = {"kind": "cuda", "device": "a GPU", "free": {"cpu": 8 << 30, "cuda": 8 << 30}, "needed": {"cuda": 1 << 30}}


def four(of_all: dict[str, Any] | None = None, **of_the_last: Any) -> list[Facts]:
    """Two ranks on each of two hosts, of which the last may be another."""
    facts = [replace(SOUND, rank=rank, host=f"node{rank // 2}", **(of_all or {})) for rank in range(4)]
    return [*facts[:3], replace(facts[3], **of_the_last)]


def row(findings: list[Finding], check: str) -> Finding:
    [found] = [finding for finding in findings if finding.check == check]
    return found


def test_nothing_is_wrong_with_a_sound_launch() -> None:
    for facts in (four(), four(GPU | {"locked_memory": (-1, -1)})):
        assert {finding.check: finding.verdict for finding in check_facts(facts, 4) if finding.verdict != "PASS"} == {}
        assert row(check_facts(facts, 4), "world").found == "4 ranks on 2 hosts"
    alone = check_facts([replace(SOUND, config=None, store=None, needed=None)], 4)  # of a rank that met no other
    assert {finding.check for finding in alone}.isdisjoint(["configuration", "data", "memory", "Triton", "world"])
    assert f"{descriptors.needed(4)} needed for 4 ranks" in row(alone, "open files").found


@pytest.mark.parametrize(
    ("of_all", "of_the_last", "check", "verdict", "found", "mend"),
    [
        (
            {},
            {"versions": VERSIONS | {"torch": "2.12"}},
            "versions",
            "FAIL",
            "rank 3 on node1 has torch 2.12",
            "install",
        ),
        ({}, {"versions": VERSIONS | {"eupmim_dist": "0.1.0 (bb)"}}, "versions", "FAIL", "(aa)", "install the same"),
        ({}, {"versions": VERSIONS | {"Python": "3.12.7"}}, "versions", "FAIL", "Python 3.12.7", "install the same"),
        ({}, {"versions": VERSIONS}, "versions", "WARN", "has deepspeed none, rank 0 on node0 has 0.19", "install"),
        (GPU, {"kind": "cpu", "device": "a processor"}, "devices", "FAIL", "rank 3 on node1 has no GPU", "--cpu"),
        ({}, {"unseen_gpu": True}, "devices", "WARN", "node1 has NVIDIA's driver, but torch sees no GPU", "CUDA"),
        ({}, {"local_size": 3}, "devices", "WARN", "node1 has 3 ranks on 2 cores", "for each core"),
        ({}, {"device": "a slow one"}, "devices", "WARN", "3 x a processor; 1 x a slow one", "slowest"),
        ({}, {"host": "node2"}, "world", "WARN", "node0 2, node1 1, node2 1", "on every host"),
        ({}, {"settings": {"NCCL_DEBUG": "INFO"}}, "NCCL, gloo", "WARN", "NCCL_DEBUG is INFO for rank 3", "the same"),
        (
            {},
            {"open_files": (124, 4096)},
            "open files",
            "FAIL",
            "124 allowed (at most 4,096), 125 needed",
            "ulimit -n 125",
        ),
        ({}, {"open_files": (64, 120)}, "open files", "FAIL", "rank 3 on node1: 64", "raise the hard limit to 125"),
        (GPU, {}, "locked memory", "WARN", "0.1 MB allowed", "ulimit -l unlimited"),
        (GPU, {"lacks_triton": "no compiler (install gcc)"}, "Triton", "WARN", "node1: no compiler", "install gcc"),
        ({}, {"config": "00"}, "configuration", "FAIL", "rank 3 on node1 has other settings than", "the same --config"),
        ({}, {"store": "ddeeff"}, "data", "FAIL", "has store ddeeff, rank 0 on node0 has aabbcc", "copy one store"),
        ({}, {"store_mistake": "d: no such directory; make it"}, "data", "FAIL", "node1: d: no such", "make it"),
        (
            {},
            {"free": {"cpu": 1_900_000_000}},
            "memory",
            "FAIL",
            "1.9 GB free, at least 2.0 GB needed for 2",
            "model.dim",
        ),
        ({}, {"free": {"cpu": 2_900_000_000}}, "memory", "WARN", "before activations", "model.dim"),
        (GPU, {"free": {"cuda": 1 << 29}}, "memory", "FAIL", "rank 3 on node1, GPU: 536.9 MB free", "model.dim"),
    ],
)
def test_what_one_rank_lacks_is_told(
    of_all: dict[str, Any], of_the_last: dict[str, Any], check: str, verdict: str, found: str, mend: str
) -> None:
    told = row(check_facts(four(of_all, **of_the_last), 4), check)
    assert told.verdict == verdict
    assert found in told.found
    assert mend in told.mend


def test_limits_without_end_and_interfaces_of_their_own_are_no_trouble() -> None:
    facts = four(open_files=(-1, -1), settings={"NCCL_SOCKET_IFNAME": "eth1"})
    assert {row(check_facts(facts, 4), check).verdict for check in ("open files", "NCCL, gloo")} == {"PASS"}


@pytest.mark.parametrize(
    ("ahead", "verdict", "found"),
    [
        (0.0, "PASS", "within 0.2 s"),
        (3.0, "WARN", "b is 3.0 s ahead of a"),
        (-3.0, "WARN", "b is 3.0 s behind a"),
        (90.0, "FAIL", "b is 90.0 s ahead of a"),
    ],
)
def test_clocks_are_compared_by_their_nearest_moments(ahead: float, verdict: str, found: str) -> None:
    delays = iter([0.0, 9.0, 0.0, 5.0])  # a rank that was held up once looked late

    def tell(what: str, find: Callable[[], Any]) -> list[Any]:
        late = next(delays)
        return [None] * 2 if what == "clocks" else [find(), find() + ahead + (late if ahead >= 0 else -late)]

    told = together.look_at_clocks(["a", "b"], tell)
    assert (told.verdict, found in told.found) == (verdict, True), told
    assert told.verdict == "PASS" or "chrony" in told.mend
    assert clocks(["a"], [0.0], 0.2).verdict == "PASS"


def on_threads(size: int, function: Callable[[int, together.Tell], Finding]) -> list[Finding]:
    """What each of some ranks finds, for which threads stand."""
    store, found = dist.HashStore(), [None] * size

    def run(rank: int) -> None:
        found[rank] = function(rank, partial(Board(store, rank, size, timedelta(seconds=20)).tell, conclude=list))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def look(size: int, place: Callable[[int], Path]) -> Finding:
    names = [f"rank {rank}" for rank in range(size)]
    found = on_threads(size, lambda rank, tell: together.look_at_run_dir(place(rank), rank, names, tell))
    assert {each.verdict for each in found} == {found[0].verdict}
    return found[0]


def test_a_run_directory_that_all_share_is_left_as_it_was(tmp_path: Path) -> None:
    told = look(3, lambda rank: tmp_path / "runs" / "a")
    assert (told.verdict, "seen and written by all" in told.found) == ("PASS", True), told
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "kept").touch()
    assert look(1, lambda rank: tmp_path / "runs").verdict == "PASS"
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "kept"]


def test_a_run_directory_that_not_all_see_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "PATIENCE", 0.1)
    told = look(3, lambda rank: tmp_path / ("other" if rank == 2 else "shared"))
    assert told.verdict == "FAIL"
    assert told.found == f"{tmp_path / 'shared'}: what rank 0 writes is not seen by rank 2"
    assert "storage that all hosts share" in told.mend
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    told = look(2, lambda rank: tmp_path / "file" / "runs")
    assert (told.verdict, "for rank 0: Not a directory" in told.found) == ("FAIL", True), told
    touch = Path.touch

    def refuse(path: Path, *rest: Any, **options: Any) -> None:
        if path.name.endswith("-1"):
            raise PermissionError(13, "Permission denied", str(path))
        touch(path, *rest, **options)

    monkeypatch.setattr(Path, "touch", refuse)
    told = look(2, lambda rank: tmp_path / "runs")
    assert told.found == f"{tmp_path / 'runs'}, for rank 1: Permission denied"
    assert "all can write" in told.mend


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_containers_count_from_inside_to_outside(tmp_path: Path, version: int) -> None:
    names = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"]
    root, line = tmp_path / "memory", "4:memory:/job/step"
    if version == 2:
        names, root, line = ["memory.max", "memory.current", "inactive_file"], tmp_path, "0::/job/step"
    limit, used, files = names
    for place, most, taken, kept in (("job", 10_000_000, 7_000_000, 1_000_000), ("job/step", 9_000_000, 1_000_000, 0)):
        (root / place).mkdir(parents=True)
        (root / place / limit).write_text(f"{most}\n")
        (root / place / used).write_text(f"{taken}\n")
        (root / place / "memory.stat").write_text(f"anon 1\n{files} {kept}\n")
    (tmp_path / "own").write_text(f"{line}\n9:name=systemd:/\n")
    assert room_in_containers(tmp_path, tmp_path / "own") == 4_000_000
    for place in ("job", "job/step"):
        (root / place / limit).write_text("max\n" if version == 2 else "9223372036854771712\n")
    assert room_in_containers(tmp_path, tmp_path / "own") is None
    assert room_in_containers(tmp_path, tmp_path / "none") is None


def test_after_a_collective_that_fails_there_are_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def timed(world: World, device: torch.device, collective: links.Try, size: int) -> links.Timed:
        tried.append(size)
        if len(tried) == 3:
            raise RuntimeError("Timed out waiting 60000 ms\nfor recv")
        return links.Timed(1e-3, size)

    monkeypatch.setattr(links, "_timed", timed)
    monkeypatch.setattr(links, "open_connections", lambda user: None)
    monkeypatch.setattr(links, "_store", lambda world: None)
    first, second = links.look_at_links(World(0, 2, 0, 2, torch.device("cpu")))
    assert (first.check, first.verdict, first.found) == (
        "exchange",
        "PASS",
        "1,000 us; 4.19 GB/s a rank, of 4.2 MB sent",
    )
    assert (second.check, second.verdict, second.mistake) == ("all-reduce", "FAIL", False)
    assert "Timed out waiting 60000 ms for recv" in second.found
    assert examine.Examination(WORLD, [first, second], [], True).exit_code == 1


def test_slow_and_damaged_messages_are_told() -> None:
    assert links.judged("store", 0.1, None).verdict == "WARN"
    assert links.judged("exchange", 0.001, links.Timed(1.0, 1_000_000)).verdict == "WARN"
    with pytest.raises(RuntimeError, match="what rank 1 sent did not arrive as it was"):
        links._check(torch.tensor([1.0, 2.0]), 1.0, "what rank 1 sent")


def told_by(line: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> tuple[int, dict[str, Any], str]:
    code = command_line(f"doctor --cpu --json {tmp_path}/found.json {line}")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["exit_code"] == code
    return code, {each["check"]: each for each in found["checks"]}, capfd.readouterr().out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.yaml").write_text(dump_config(config_of(tmp_path)))
    monkeypatch.setenv(examine.TIMEOUT, "20")
    return tmp_path


def test_one_process_looks_at_itself(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.iterdir())
    code, checks, out = told_by(f"--config {here}/small.yaml --run-dir {here}/runs/a", capfd, here)
    assert code == 0, out
    assert {"versions", "devices", "world", "open files", "data", "memory", "run directory"} <= checks.keys()
    assert {"clocks", "network", "exchange"}.isdisjoint(checks)
    assert max(len(line) for line in out.splitlines()) <= 80
    assert sorted(here.iterdir()) == sorted([*before, here / "found.json"])
    code, checks, out = told_by("", capfd, here)
    assert (code, "data" in checks, "run directory" in checks) == (0, False, False)
    assert "not looked at without --config: data, memory" in out


def test_what_a_training_would_be_refused_for_ends_with_2(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, checks, out = told_by(f"--config {here}/small.yaml --set data.dir={here}/none", capfd, here)
    assert (code, checks["data"]["verdict"]) == (2, "FAIL")
    assert "mend: make a store with" in out
    huge = "--set model.name=youtube_dnn --set model.hidden=[1] --set model.dim=1000000000"
    code, checks, _ = told_by(f"{huge} --set data.dir={here}/store", capfd, here)
    assert (code, checks["memory"]["verdict"]) == (2, "FAIL")
    monkeypatch.setenv("EUPMIM_WORLD_SIZE", "3")
    code, checks, _ = told_by("", capfd, here)
    assert (code, checks["network"]["verdict"]) == (2, "FAIL")
    assert "3 ranks were asked for" in checks["network"]["found"]


def test_ranks_that_cannot_meet_are_told_in_time(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rank 1 ever comes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 2,
        "LOCAL_RANK": 0,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_PORT": port,
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv(examine.TIMEOUT, "1")
    started = time.monotonic()
    code, checks, _ = told_by(f"--run-dir {here}/runs", capfd, here)
    assert (code, checks["network"]["verdict"]) == (2, "FAIL")
    assert "did not meet the others" in checks["network"]["found"] or "did not come" in checks["network"]["found"]
    assert time.monotonic() - started < 15


def test_a_mistake_in_the_command_is_none_of_the_launch(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command_line("doctor --config none.yaml") == 2
    assert command_line("doctor --world 4") == 2
    assert command_line("doctor --estimate") == 2
    told = capfd.readouterr()
    assert "PASS" not in told.out
    assert [line.partition(":")[0] for line in told.err.splitlines()] == ["error"] * 3
