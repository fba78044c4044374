"""Verdicts on what all ranks found of themselves: pure functions of their facts, given in the order of the ranks."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from eupmim_dist.doctor.facts import OPTIONAL, Facts
from eupmim_dist.doctor.findings import Finding, failed, passed, warned
from eupmim_dist.parallel import descriptors
from eupmim_dist.parallel.network import MUST_AGREE
from eupmim_dist.telemetry.progress import in_bytes

SKEW_WARNED, SKEW_FAILED = 1.0, 60.0
"""Seconds."""
ROOM_TO_SPARE = 1.5
"""What is free should be so many times what is needed at the least: activations come on top."""

T = TypeVar("T", bound=Hashable)


def check_facts(facts: Sequence[Facts], size: int) -> list[Finding]:
    """The checks that need no connection between the ranks, of which there are `size`, perhaps not all here."""
    found = [versions(facts), devices(facts), *([world(facts)] if len(facts) == size else [])]
    found += [settings(facts), open_files(facts, size), locked_memory(facts)]
    found += [triton(facts)] if any(each.kind == "cuda" for each in facts) else []
    found += [configuration(facts)] if size > 1 and any(each.config for each in facts) else []
    found += [data(facts)] if any(each.store or each.store_mistake for each in facts) else []
    found += [memory(facts)] if any(each.needed for each in facts) else []
    return found


def versions(facts: Sequence[Facts]) -> Finding:
    first = facts[0].versions
    names = list(dict.fromkeys(name for each in facts for name in each.versions))
    ordered = [name for name in ("eupmim_dist", "Python", *MUST_AGREE, *OPTIONAL) if name in names]
    told = ", ".join(f"{name} {first.get(name, 'none')}" for name in dict.fromkeys([*ordered, *names]))
    for name in [*ordered, *names]:
        for each in facts:
            here, there = each.versions.get(name, "none"), first.get(name, "none")
            if here == there:
                continue
            apart = f"{each.name} has {name} {here}, {facts[0].name} has {there}"
            must = name in (*MUST_AGREE, "eupmim_dist") or (name == "Python" and _minor(here) != _minor(there))
            return (failed if must else warned)("versions", apart, "install the same on all hosts")
    return passed("versions", told)


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def devices(facts: Sequence[Facts]) -> Finding:
    what = "devices"
    told = "; ".join(f"{len(ranks)} x {device}" for device, ranks in _by(facts, lambda each: each.device).items())
    kinds = _by(facts, lambda each: each.kind)
    if len(kinds) > 1:
        lacking = kinds["cpu"][0]
        return failed(what, f"{lacking.name} has no GPU, others have", "give every rank one, or start all with --cpu")
    if unseen := [each for each in facts if each.unseen_gpu]:
        return warned(
            what,
            f"{unseen[0].host} has NVIDIA's driver, but torch sees no GPU: {told}",
            "install a torch built for CUDA that the driver serves (python -c 'import torch; torch.cuda.init()' "
            "says what is wrong)",
        )
    if crowded := [each for each in facts if each.kind == "cpu" and each.local_size > each.cores]:
        each = crowded[0]
        few = f"{each.host} has {each.local_size} ranks on {each.cores} cores: {told}"
        return warned(what, few, "start at most one rank for each core")
    if len(_by(facts, lambda each: each.device)) > 1:
        return warned(what, f"not the same everywhere: {told}", "all ranks wait for the slowest device in each step")
    return passed(what, told)


def world(facts: Sequence[Facts]) -> Finding:
    hosts = _by(facts, lambda each: each.host)
    counts = {len(ranks) for ranks in hosts.values()}
    told = f"{len(facts)} {'rank' if len(facts) == 1 else 'ranks'} on {_number(hosts, 'host')}"
    if len(counts) > 1:
        each = ", ".join(f"{host} {len(ranks)}" for host, ranks in hosts.items())
        return warned("world", f"{told}, not as many on each: {each}", "start as many ranks on every host")
    return passed("world", told)


def _number(things: Sequence[object] | dict, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def settings(facts: Sequence[Facts]) -> Finding:
    what = "NCCL, gloo"
    for name in sorted(
        {name for each in facts for name in each.settings} - {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}
    ):
        for each in facts:
            here, there = each.settings.get(name, "not set"), facts[0].settings.get(name, "not set")
            if here != there:
                apart = f"{name} is {here} for {each.name}, {there} for {facts[0].name}"
                return warned(what, apart, "set the same on all hosts")
    told = ", ".join(f"{name}={value}" for name, value in facts[0].settings.items())
    return passed(what, told or "no variables set")


def open_files(facts: Sequence[Facts], size: int) -> Finding:
    what, needed = "open files", descriptors.needed(size)
    least = min(facts, key=lambda each: _limited(each.open_files[0]))
    soft, hard = least.open_files
    told = f"{_limit(soft)} allowed (at most {_limit(hard)}), {needed:,} needed for {_number(range(size), 'rank')}"
    if _limited(soft) >= needed:
        return passed(what, told)
    mend = f"ulimit -n {needed} before the launcher"
    if _limited(hard) < needed:
        mend = f"raise the hard limit to {needed} (limits.conf: nofile; docker run --ulimit nofile={needed})"
    return failed(what, f"{least.name}: {told}", mend)


def locked_memory(facts: Sequence[Facts]) -> Finding:
    what = "locked memory"
    least = min(facts, key=lambda each: _limited(each.locked_memory[0]))
    soft = least.locked_memory[0]
    told = "no limit" if soft < 0 else f"{in_bytes(soft)} allowed"
    if soft >= 0 and least.kind == "cuda" and len(_by(facts, lambda each: each.host)) > 1:
        return warned(what, f"{least.name}: {told}", "ulimit -l unlimited, where NCCL goes over InfiniBand or RoCE")
    needs = "" if soft < 0 else "; gloo and one host need none"
    return passed(what, told + needs)


def _limit(limit: int) -> str:
    return "any number" if limit < 0 else f"{limit:,}"


def _limited(limit: int) -> float:
    return float("inf") if limit < 0 else limit


def triton(facts: Sequence[Facts]) -> Finding:
    lacking = [each for each in facts if each.lacks_triton]
    if not lacking:
        return passed("Triton", "has a C compiler and Python's headers")
    found, _, mend = str(lacking[0].lacks_triton).partition(" (")
    return warned("Triton", f"{lacking[0].host}: {found}; each step waits for the GPU without", mend.removesuffix(")"))


def configuration(facts: Sequence[Facts]) -> Finding:
    for each in facts:
        if each.config != facts[0].config:
            apart = f"{each.name} has other settings than {facts[0].name}"
            return failed("configuration", apart, "start all hosts with the same --config and --set, but for data.dir")
    return passed("configuration", "the same for all ranks")


def data(facts: Sequence[Facts]) -> Finding:
    for each in facts:
        if each.store_mistake:
            found, _, mend = each.store_mistake.partition("; ")
            return failed("data", f"{each.name}: {found}", mend or "set data.dir to where the store is on this host")
    for each in facts:
        if each.store != facts[0].store:
            apart = f"{each.name} has store {each.store}, {facts[0].name} has {facts[0].store}"
            return failed("data", apart, "copy one store to all hosts")
    alike = "" if len(facts) == 1 else ", the same for all ranks"
    return passed("data", f"store {facts[0].store}{alike}; its files are read through when a training starts")


def memory(facts: Sequence[Facts]) -> Finding:
    told: list[str] = []
    for kind, label in (("cuda", "GPU"), ("cpu", "host")):
        pairs = [
            (each, each.needed[kind] * (each.local_size if kind == "cpu" else 1), each.free[kind])
            for each in facts
            if each.needed and kind in each.needed and kind in each.free
        ]
        if not pairs:
            continue
        each, needed, free = max(pairs, key=lambda pair: pair[1] / max(pair[2], 1))
        of_ranks = f" for {_number(range(each.local_size), 'rank')}" if kind == "cpu" else " a rank"
        told.append(f"{label}: {in_bytes(free)} free, at least {in_bytes(needed)} needed{of_ranks}")
        mend = "lower model.dim, task.history_length or train.global_batch_size, or use more ranks"
        if needed > free:
            return failed("memory", f"{each.name}, {told[-1]}", mend)
        if needed * ROOM_TO_SPARE > free:
            return warned("memory", f"{each.name}, {told[-1]}, before activations", mend)
    return passed("memory", "; ".join(told) or "not known")


def clocks(names: Sequence[str], offsets: Sequence[float], precision: float) -> Finding:
    """`offsets`: seconds that each rank's clock is ahead of rank 0's."""
    worst = max(range(len(offsets)), key=lambda rank: abs(offsets[rank]))
    apart = abs(offsets[worst])
    if apart < SKEW_WARNED:
        return passed("clocks", f"within {max(apart, precision):.1f} s of each other")
    found = f"{names[worst]} is {apart:,.1f} s {'ahead of' if offsets[worst] > 0 else 'behind'} {names[0]}"
    mend = "set the clocks by one server (chrony, ntpd): logs and curves of hosts are put in order by them"
    return (failed if apart > SKEW_FAILED else warned)("clocks", found, mend)


def _by(facts: Sequence[Facts], key: Callable[[Facts], T]) -> dict[T, list[Facts]]:
    found: dict[T, list[Facts]] = {}
    for each in facts:
        found.setdefault(key(each), []).append(each)
    return found
