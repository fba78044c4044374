"""What is right and wrong with a launch, found by all its ranks together, also where they could not train together."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from eupmim_dist.config.schema import Config
from eupmim_dist.doctor.checks import check_facts
from eupmim_dist.doctor.facts import Facts, facts_of, settings_of
from eupmim_dist.doctor.findings import Finding, failed, failed_as_told, passed, warned
from eupmim_dist.doctor.links import look_at_links
from eupmim_dist.doctor.together import look_at_clocks, look_at_run_dir
from eupmim_dist.errors import UserError
from eupmim_dist.parallel import network
from eupmim_dist.parallel.world import World, init_world

Show = Callable[[Finding], None]
TIMEOUT = "EUPMIM_TIMEOUT_SECONDS"
PATIENCE = "60"
"""Seconds after which what does not come is told, unless the environment says otherwise."""


@dataclass(frozen=True)
class Examination:
    """The same on all ranks that could be asked."""

    world: World
    findings: list[Finding]
    facts: list[Facts]
    together: bool
    """Whether all ranks have met; if not, this is what one found alone."""

    @property
    def exit_code(self) -> int:
        """0 where nothing fails, 2 where the user's mistakes do, 1 where something else does (docs/faults.md)."""
        failed = [finding for finding in self.findings if finding.verdict == "FAIL"]
        return (2 if all(finding.mistake for finding in failed) else 1) if failed else 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "exit_code": self.exit_code,
            "checks": [asdict(finding) for finding in self.findings],
            "ranks": [asdict(each) for each in self.facts],
        }


def examine(config: Config | None, run_dir: Path | None, cpu: bool, show: Show = lambda finding: None) -> Examination:
    """Looks at everything; collective. With a configuration also at its data and memory.

    What is found is shown at once: a rank that dies takes the others with it.
    """
    os.environ.setdefault(TIMEOUT, PATIENCE)
    settings, started = settings_of(os.environ), time.perf_counter()
    problem: Exception | None = None
    try:
        world = init_world(cpu)
    except (UserError, RuntimeError, ConnectionError) as error:
        world, problem = _apart(cpu), error
    took = time.perf_counter() - started
    together, findings = network.have_met(), []

    def add(*found: Finding) -> None:
        for finding in found:
            findings.append(finding)
            show(finding)

    def look() -> dict[str, Any]:
        return asdict(facts_of(world, settings, config))

    told: list[dict[str, Any]] = []
    if together:
        try:
            told = network.tell("facts", look)
        except (UserError, dist.DistError) as error:  # a rank is gone, or stuck
            problem, together = problem or error, False
    facts = [_facts(each) for each in told or [look()]]
    if problem or together:
        add(_meeting(world, problem, took))
    add(*check_facts(facts, world.size))
    try:
        names = [each.name for each in facts]
        if together:
            add(look_at_clocks(names, network.tell))
        if run_dir is not None:
            rank, tell = (world.rank, network.tell) if together else (0, _told_to_nobody)
            add(look_at_run_dir(run_dir, rank, names, tell))
    except (UserError, dist.DistError) as error:
        problem, together = error, False
        add(_meeting(world, problem, took))
    if world.size > 1 and problem is not None:
        add(warned("exchange", "not tried: the ranks have no network", "mend that first"))
    elif world.size > 1:
        for finding in look_at_links(world):
            add(finding)
    return Examination(world, findings, facts, together)


def _told_to_nobody(what: str, find: Callable[[], Any]) -> list[Any]:
    return [find()]


def wait_for_the_report(examination: Examination) -> None:
    """Until rank 0 has printed it, as a launcher stops all ranks with the first that fails; collective."""
    if examination.together and network.have_met():
        with suppress(UserError, dist.DistError):
            network.tell("reported", lambda: None)


def _meeting(world: World, problem: Exception | None, seconds: float) -> Finding:
    if isinstance(problem, UserError):
        return failed_as_told("network", problem.as_typed)
    if problem is not None:
        told = " ".join(str(problem).split())
        return failed("network", told[:300], "let all ports through between the hosts", mistake=False)
    place = f"met at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} after {seconds:.1f} s"
    return passed("network", f"{network.described()}; {place}")


def _apart(cpu: bool) -> World:
    """The world as the environment has it, of a rank that could not join it."""

    def number(name: str, default: int) -> int:
        told = os.environ.get(name, "")
        return int(told) if told.isdecimal() else default

    local_rank, gpus = number("LOCAL_RANK", 0), 0 if cpu else torch.cuda.device_count()
    device = torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
    return World(number("RANK", 0), number("WORLD_SIZE", 1), local_rank, number("LOCAL_WORLD_SIZE", 1), device)


def _facts(told: dict[str, Any]) -> Facts:
    limits = {name: tuple(told[name]) for name in ("open_files", "locked_memory")}
    return Facts(**(told | limits))
