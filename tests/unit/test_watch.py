"""A launcher kills the rank that beats no more, and no other."""

import subprocess
import sys
import time

import torch.distributed as dist

from eupmim_dist.cli import watch
from eupmim_dist.cli.watch import watched_ranks
from eupmim_dist.parallel import heartbeat
from eupmim_dist.parallel.heartbeat import Heartbeat


def test_a_rank_without_a_sign_of_life_is_killed(monkeypatch, capsys):
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    beats, silent = subprocess.Popen(sleep), subprocess.Popen(sleep)
    try:
        with watched_ranks(1.0) as (directory, killed):
            (directory / "rank-13").write_text(f"{silent.pid} in step 7, at a place, for 2 s")
            for _ in range(20):
                (directory / "rank-2").write_text(f"{beats.pid} at a place, for 0 s")
                time.sleep(0.1)
            assert (silent.wait(5), beats.poll()) == (-9, None)
            told = capsys.readouterr().err
    finally:
        for process in (beats, silent):
            process.kill()
            process.wait()
    assert told == "rank 13: no sign of life for 1 s, last in step 7, at a place, for 2 s: killed\n"
    assert not directory.exists()
    assert killed == {13}


def test_a_rank_leaves_its_beats_where_its_launcher_looks(monkeypatch, tmp_path):
    monkeypatch.setenv(heartbeat.DIRECTORY_VARIABLE, str(tmp_path))
    mine = Heartbeat(dist.HashStore(), 3, 0.2)
    mine.start()
    time.sleep(0.2)
    mine.stop()
    assert [file.name for file in tmp_path.iterdir()] == ["rank-3"]
    assert (tmp_path / "rank-3").read_text().partition(" ")[2].startswith("at a place outside of this program, for")
