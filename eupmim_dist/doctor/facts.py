"""What each rank finds of itself and of its host, as plain numbers and words: `checks.py` judges those of all ranks."""

import os
import platform
import resource
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from eupmim_dist import assemble
from eupmim_dist.config.schema import Config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError, mistake_of
from eupmim_dist.hashing import sha256_of_json
from eupmim_dist.parallel import processors
from eupmim_dist.parallel.memory import available_bytes
from eupmim_dist.parallel.merge import lack_of_triton
from eupmim_dist.parallel.network import versions_here
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.machine import device_name
from eupmim_dist.train.room import TABLES
from eupmim_dist.training import compared_settings

OPTIONAL = ("deepspeed", "triton")
"""Packages that not every training uses."""
SETTINGS = ("NCCL_", "GLOO_", "TORCH_NCCL_")
"""What variables of the environment begin with that NCCL and gloo read."""
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of one rank; what is None is not known, or was not asked for."""

    rank: int
    host: str
    local_size: int
    versions: dict[str, str]
    kind: str
    """Of its device: cpu or cuda."""
    device: str
    cores: int
    """That the ranks of its host may use."""
    unseen_gpu: bool
    """Whether the host has NVIDIA's driver and torch sees no GPU, though nobody hid it."""
    settings: dict[str, str]
    """Of NCCL and gloo, as they were set for it."""
    open_files: tuple[int, int]
    locked_memory: tuple[int, int]
    """Limits in bytes, soft and hard; -1 for none."""
    lacks_triton: str | None
    free: dict[str, int]
    """Bytes by kind of device, and of the host within the limits of its containers."""
    config: str | None = None
    """A digest of all settings but where the data is."""
    needed: dict[str, int] | None = None
    """Bytes that a rank of the training takes at the least, by kind of device."""
    store: str | None = None
    store_mistake: str | None = None

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.host}"


def settings_of(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in sorted(environment.items()) if name.startswith(SETTINGS)}


def facts_of(world: World, settings: dict[str, str], config: Config | None) -> Facts:
    """This rank's; `settings` as they were before ranks met. With a configuration also what its training needs."""
    free = {}
    for device in dict.fromkeys([torch.device("cpu"), world.device]):
        if (left := available_bytes(device)) is not None:
            free[device.type] = left
    if (left := room_in_containers()) is not None:
        free["cpu"] = min(left, free.get("cpu", left))
    store, needed, mistake, digest = None, None, None, None
    if config is not None:
        digest = sha256_of_json(compared_settings(config))[:12]
        try:
            opened = InteractionStore.open(config.data.dir, verify=False)  # read through when a training starts
            store, needed = opened.fingerprint[:12], _needed(config, opened, world)
        except (UserError, OSError) as error:
            told = mistake_of(error)
            mistake = told.as_typed if told else f"{type(error).__name__}: {error}"
    return Facts(
        rank=world.rank,
        host=socket.gethostname(),
        local_size=world.local_size,
        versions=_versions(),
        kind=world.device.type,
        device=device_name(world.device),
        cores=len(processors.available()),
        unseen_gpu=_sees_no_gpu(),
        settings=settings,
        open_files=_limit("RLIMIT_NOFILE"),
        locked_memory=_limit("RLIMIT_MEMLOCK"),
        lacks_triton=lack_of_triton() if world.device.type == "cuda" else None,
        free=free,
        config=digest,
        needed=needed,
        store=store,
        store_mistake=mistake,
    )


def _needed(config: Config, store: InteractionStore, world: World) -> dict[str, int]:
    needed = assemble.needed_room(config, store, world)
    found = dict.fromkeys(("cpu", world.device.type), 0)
    for what, size in needed.items():
        on_host = what == TABLES and config.tables.memory == "host"
        found["cpu" if on_host else world.device.type] += size
    return {kind: size for kind, size in found.items() if size}


def _sees_no_gpu() -> bool:
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES") != "" and not os.environ.get("ACCELERATE_USE_CPU")
    return wanted and shutil.which("nvidia-smi") is not None and not torch.cuda.is_available()


def _versions() -> dict[str, str]:
    found = versions_here() | {"Python": platform.python_version()}
    for name in OPTIONAL:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    if torch.cuda.is_available():
        found["CUDA"] = str(torch.version.cuda)
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def _limit(name: str) -> tuple[int, int]:
    soft, hard = resource.getrlimit(getattr(resource, name))
    return soft, hard


def room_in_containers(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes that the control groups around this process still let it take; None without a limit.

    What files hold in memory is given up where it is needed, and so does not count.
    """
    kinds = {
        "": (root, "memory.max", "memory.current", "inactive_file"),
        "memory": (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    left: list[int] = []
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, kind, path = line.split(":", 2)
            if kind not in kinds:
                continue
            base, limit, used, files = kinds[kind]
            inside = base / path.lstrip("/")
            for group in [*dict.fromkeys([inside, *inside.parents])]:
                if group != base and base not in group.parents:
                    break
                with suppress(OSError, ValueError, StopIteration):  # "max", or not shown in here
                    stat = (line.split() for line in (group / "memory.stat").read_text().splitlines())
                    kept = next(int(value) for name, value in stat if name == files)
                    left.append(int((group / limit).read_text()) - int((group / used).read_text()) + kept)
    total = next((1024 * int(line.split()[1]) for line in _meminfo() if line.startswith("MemTotal")), None)
    return min((room for room in left if total is None or room < total), default=None)


def _meminfo() -> list[str]:
    with suppress(OSError):
        return Path("/proc/meminfo").read_text().splitlines()
    return []
