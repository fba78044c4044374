"""Several hosts on one machine: namespaces joined by a switch, each with an address, a name and processes of its own.

A host is the process that holds its namespaces; with it all that runs there ends, and the interfaces go.
"""

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

KINDS = {"net": 0x40000000, "uts": 0x04000000, "mnt": 0x00020000}
"""Kinds of namespaces that `enter` changes, with the flags of setns(2)."""
_numbers = itertools.count()


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)


class Host:
    """One host. Its own name resolves to 127.0.1.1, as on Debian, those of the others to their addresses."""

    def __init__(self, name: str, names: Mapping[str, str] | None = None) -> None:
        """`names`: addresses of other hosts by name; None for a container's hosts file, which has localhost only."""
        self.name = name
        told = {"localhost": "127.0.0.1"} if names is None else {"localhost": "127.0.0.1", name: "127.0.1.1", **names}
        self._folder = Path(tempfile.mkdtemp(prefix="host-"))
        (self._folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in told.items()))
        setup = f"hostname {name}; ip link set lo up; mount --bind {self._folder}/hosts /etc/hosts; exec sleep infinity"
        flags = ["--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        self._holder = subprocess.Popen(["unshare", *flags, "sh", "-c", setup], stderr=subprocess.PIPE, text=True)
        self.pid = self._first_process()

    def _first_process(self) -> int:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self._holder.poll() is None:
            found = subprocess.run(["pgrep", "-P", str(self._holder.pid)], capture_output=True, text=True).stdout
            with suppress(OSError, ValueError):
                pid = int(found)
                if Path(f"/proc/{pid}/comm").read_text() == "sleep\n":  # all before it is done
                    return pid
            time.sleep(0.01)
        raise OSError("namespaces cannot be made: " + (self._holder.stderr.read() if self._holder.poll() else "late"))

    def command(self, words: Sequence[object]) -> list[str]:
        """What runs a command on this host, from the working directory."""
        inside = ["nsenter", f"--target={self.pid}", "--net", "--uts", "--mount", "--pid", f"--wd={os.getcwd()}"]
        return [*inside, *map(str, words)]

    def run(self, *words: object) -> None:
        _run(*self.command(words))

    def connect(self, switch: "Host", number: int) -> None:
        """A cable to the switch, with the addresses 10.77.0.NUMBER and fd77::NUMBER, and before it one into nowhere."""
        self._switch, self._port, self.address = switch, f"port{number}", f"10.77.0.{number}"
        for interface, port, network in (("a0", f"unused{number}", 66), ("eth0", self._port, 77)):
            ends = ["netns", self.pid, "type", "veth", "peer", "name", port, "netns", switch.pid]
            _run("ip", "link", "add", interface, *ends)
            switch.run("ip", "link", "set", port, "up")
            self.run("ip", "address", "add", f"10.{network}.0.{number}/24", "dev", interface)
            self.run("ip", "-6", "address", "add", f"fd{network}::{number}/64", "dev", interface, "nodad")
            self.run("ip", "link", "set", interface, "up")
        switch.run("ip", "link", "set", self._port, "master", "switch")

    def join(self, number: int) -> None:
        """Addresses for an eth0 that is there, the end of a slow cable."""
        self.address = f"10.77.0.{number}"
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "mtu", 65_000, "up")

    def cut(self) -> None:
        """Pulls the cable out."""
        self._switch.run("ip", "link", "set", self._port, "down")

    def mend(self) -> None:
        self._switch.run("ip", "link", "set", self._port, "up")

    def off(self) -> None:
        """Ends it with all its processes."""
        self._holder.kill()
        self._holder.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)


class Network:
    """Hosts node0, node1, ... on one switch, until the `with` block ends."""

    def __init__(self, size: int, named: bool = True) -> None:
        """Unless `named`, no host knows a name, not its own either."""
        self.size, self.named = size, named
        self.hosts: list[Host] = []

    def __enter__(self) -> list[Host]:
        try:
            self._switch = Host(f"switch{next(_numbers)}", {})
            self._switch.run("ip", "link", "add", "switch", "type", "bridge")
            self._switch.run("ip", "link", "set", "switch", "up")
            addresses = {f"node{i}": f"10.77.0.{i + 1}" for i in range(self.size)}
            for name in addresses:
                others = {other: address for other, address in addresses.items() if other != name}
                self.hosts.append(Host(name, others if self.named else None))
                self.hosts[-1].connect(self._switch, len(self.hosts))
        except BaseException:
            self.__exit__()
            raise
        return self.hosts

    def __exit__(self, *_: object) -> None:
        for host in [*self.hosts, self._switch]:
            host.off()


@contextmanager
def slow_network(megabits: float) -> Iterator[list[Host]]:
    """Hosts node0 and node1 on a cable that carries so many Mbit/s each way (relay.py)."""
    with ExitStack() as stack:
        hosts = []
        for i in range(2):
            hosts.append(Host(f"node{i}", {f"node{1 - i}": f"10.77.0.{2 - i}"}))
            stack.callback(hosts[-1].off)
        relay = [sys.executable, Path(__file__).with_name("relay.py"), *(host.pid for host in hosts), megabits]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([*map(str, relay)], **pipes) as carrying:
            assert carrying.stdout.readline() == b"ready\n", "the cable is there"
            for number, host in enumerate(hosts, start=1):
                host.join(number)
            carrying.stdin.write(b"up\n")
            carrying.stdin.flush()
            yield hosts


@cache
def why_not() -> str:
    """Why no hosts can be made here; empty where they can."""
    if sys.platform != "linux":
        return "only Linux has network namespaces"
    if missing := [tool for tool in ("ip", "unshare", "nsenter", "pgrep") if not shutil.which(tool)]:
        return f"hosts of namespaces need {', '.join(missing)}"
    try:
        with Network(1):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces: {getattr(error, 'stderr', '') or error}".strip()


needs_hosts = pytest.mark.skipif(bool(why_not()), reason=why_not())


def enter(host_pid: int) -> None:
    """Moves this process, which has one thread, to a host; it stays in the process namespace that it is in."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, flag in KINDS.items():
        with open(f"/proc/{host_pid}/ns/{kind}") as namespace:
            if libc.setns(namespace.fileno(), flag):
                raise OSError(ctypes.get_errno(), f"setns {kind}")


def wait_until(true: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)
