"""When a launcher may meet node 0: once its endpoint is open, and not that of an attempt that has failed."""

import threading
import time
from contextlib import suppress

import pytest
import torch.distributed as dist

from eupmim_dist.cli import attempts
from eupmim_dist.errors import UserError
from eupmim_dist.parallel.board import JOINED


@pytest.fixture
def node_0():
    """The store of its launcher."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def command(port, node=1):
    return ["--machine_rank", str(node), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]


def test_an_endpoint_is_ready_unless_the_nodes_ranks_have_been_there(node_0):
    assert attempts._not_ready("127.0.0.1", node_0.port, "1") == ""
    node_0.set(f"{JOINED}/1", "")
    assert attempts._not_ready("127.0.0.1", node_0.port, "1") == attempts.FAILED_HERE
    assert attempts._not_ready("127.0.0.1", node_0.port, "2") == ""  # as a node that is started late
    port = node_0.port
    del node_0
    assert attempts._not_ready("127.0.0.1", port + 1, "1") == "Connection refused"


def test_a_node_that_starts_again_waits_for_node_0_to_do_so(monkeypatch, capsys):
    monkeypatch.setattr(attempts, "PATIENCE_SECONDS", 0)
    held = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)]
    port = held[0].port
    held[0].set(f"{JOINED}/1", "")

    def start_again():
        time.sleep(0.6)
        held.clear()
        for _ in range(100):
            with suppress(dist.DistError):  # until the port is free
                held.append(dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False))
                return
            time.sleep(0.05)

    again = threading.Thread(target=start_again)
    started = time.monotonic()
    again.start()
    attempts._await_node_0(command(port))
    again.join()
    assert time.monotonic() - started >= 0.6
    assert f"waiting for 127.0.0.1:{port}: {attempts.FAILED_HERE}\n" in capsys.readouterr().err
    attempts._await_node_0(command(port, node=0))  # itself


def test_a_node_whose_first_one_never_ends_gives_up(monkeypatch, node_0):
    monkeypatch.setattr(attempts, "MEETING_SECONDS", 0.1)
    monkeypatch.setattr(attempts, "ENDPOINT_SECONDS", -600)
    node_0.set(f"{JOINED}/1", "")
    with pytest.raises(UserError) as error:
        attempts._await_node_0(command(node_0.port))
    told = f"--rdzv-endpoint 127.0.0.1:{node_0.port}: not there within 0 s: {attempts.FAILED_HERE}; end it there, and "
    assert error.value.as_typed == told + "start all nodes again"
