"""A failure on one rank becomes the failure of all ranks, without a hang.

Ranks agree through the process group's key-value store, not through a collective: a rank that failed half-way
through a body that communicates must not answer another rank's collective with one of its own (gloo pairs
them and hands over garbage), and a GPU that has just failed must not be needed to say so.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from eupmim_dist.errors import UserError, mistake_of, shown
from eupmim_dist.hashing import OnBytes
from eupmim_dist.parallel import heartbeat
from eupmim_dist.parallel.board import STORE_SECONDS, holds_store
from eupmim_dist.parallel.network import named
from eupmim_dist.parallel.patience import Deadline, in_time
from eupmim_dist.parallel.world import World, collective_timeout, parted

GRACE_SECONDS = 3.0
"""How long ranks wait for one another once one of them is known to have failed."""

_LOST_PEER = (  # what gloo, NCCL and the store say when another rank has gone or is late
    "closed by peer",
    "reset by peer",
    "broken pipe",
    "timed out",
    "timeout",
    "remote process exited",
    "communicator was aborted",
    "connection was likely closed",
)


class RankFailed(RuntimeError):
    """Another rank failed; the message says which and why."""

    reported_elsewhere = False
    """True where another rank prints the reason: this one exits without a word."""


class RankMistake(RankFailed, UserError):
    """Another rank failed by a user's mistake."""


class _StoreLost(RankFailed):
    """The store through which ranks agree is out of reach, and so are all ranks for which it is not."""


_AT_WORK = "eupmim/at_work"
"""Counts what ranks have said of a long work within a region: those that wait for them begin to wait anew."""

_open_regions: list[str] = []  # outermost first
_entered = [0]  # regions entered so far, at each depth


@contextmanager
def agreed(world: World) -> Iterator[None]:
    """Run the body on every rank; if it raises on any, all ranks raise.

    A failing rank raises its own exception, the others `RankFailed("rank 1: reason")` (`RankMistake` if the
    reason was a UserError). All but one rank carry `reported_elsewhere = True` on what they raise. Every
    rank must enter the same regions in the same order; they nest, and bodies may communicate. A rank that a
    failed one has left alone inside a collective is freed when that one exits, GRACE_SECONDS later. The
    price is a few round trips to the store, so regions belong around a command, set-up, evaluation and
    checkpoints, not around a step.
    """
    if world.size == 1:
        yield
        return
    _open_regions.append(f"eupmim/agreed/{'.'.join(map(str, _entered))}")
    _entered[-1] += 1
    _entered.append(0)
    beating = heartbeat.mine()
    if beating:
        beating.region = _open_regions[0]
    error: BaseException | None = None
    try:
        yield
    except BaseException as caught:
        error = caught
    regions = list(_open_regions)
    _open_regions.pop()
    _entered.pop()
    try:
        if isinstance(error, _StoreLost):
            raise error
        _agree(world, regions, error)
    finally:
        if beating and not _open_regions:
            beating.region = ""


def _agree(world: World, regions: list[str], error: BaseException | None) -> None:
    """Raises what is to be raised here of how the innermost of `regions` went."""
    deadline = Deadline(collective_timeout() if error is None else GRACE_SECONDS if isinstance(error, Exception) else 0)
    try:
        failures, reporter = in_time(deadline, 2 * GRACE_SECONDS, lambda: _meet(world, regions, error, deadline))
    except (dist.DistError, TimeoutError) as gone:
        parted.set()
        if error is not None and not _is_lost_peer(error):
            raise error from gone  # its own reason: what became of the store is no part of it
        raise _store_lost(world) from gone
    if failures:
        first = min(failures)
        if error is None or (first != world.rank and _is_lost_peer(error)):
            kind, beating = RankMistake if failures[first]["mistake"] else RankFailed, heartbeat.mine()
            traces = beating.traces() if beating and failures[first].get("silent") else ""
            error = kind(f"{named(first)}: {failures[first]['reason']}{traces}")
        error.reported_elsewhere = reporter != world.rank  # type: ignore[attr-defined]
        if world.local_size < world.size or holds_store(world.rank):
            time.sleep(STORE_SECONDS)
    if error is not None:
        raise error


T = TypeVar("T")


def decided_by_main(world: World, decide: Callable[[], T]) -> T:
    """What `decide` returns on rank 0, on every rank: one view of the file system for all. Collective."""
    decision: list[T | None] = [None]
    with agreed(world):
        if world.is_main:
            decision[0] = decide()
    if world.size > 1:
        dist.broadcast_object_list(decision, device=torch.device("cpu"))
    return cast(T, decision[0])


def everywhere(value: T, world: World, group: dist.ProcessGroup | None = None) -> list[T]:
    """The values of all ranks, in their order, on every rank. Collective; over `group` if given."""
    values = [value] * world.size
    if world.size > 1:
        dist.all_gather_object(values, value, group=group)
    return values


def check_alike(world: World, values: Mapping[str, object], mend: str) -> None:
    """Raises UserError, on all ranks, where one has other `values` than rank 0; collective."""
    main = decided_by_main(world, lambda: dict(values))
    with agreed(world):
        for name, value in values.items():
            if name not in main or value != main[name]:
                there = shown(main.get(name, "not set"))
                raise UserError(f"{name}: {shown(value)} for {named(world.rank)}, {there} for {named(0)}; {mend}")


def let_the_first_failure_speak(error: BaseException) -> None:
    """On a rank that fails only because another has gone: wait for the launcher to stop this one.

    For failures outside of `agreed`. The rank with the reason is then the only one to print it, and the
    launch ends with its exit code. Without a launcher the wait ends after GRACE_SECONDS.
    """
    if _is_lost_peer(error):
        time.sleep(GRACE_SECONDS)


def _store_lost(world: World) -> _StoreLost:
    error = _StoreLost(
        f"{named(world.rank)}: lost {named(0)}, or its launcher, through which ranks agree: gone, stuck, or cut off"
    )
    error.reported_elsewhere = world.local_rank != 0  # one of each host tells it
    return error


def at_work(world: World) -> OnBytes:
    """For a work of one rank within `agreed` that may take longer than ranks wait: to be called as it goes on.

    A rank that is stuck in it calls no more, and so is given up as any other.
    """
    said = time.monotonic()

    def say(_: int) -> None:
        nonlocal said
        if world.size > 1 and time.monotonic() - said > collective_timeout() / 4:
            store = dist.distributed_c10d._get_default_store()
            with suppress(dist.DistError, TimeoutError):  # found where ranks meet next
                in_time(Deadline(0), 2 * GRACE_SECONDS, lambda: store.add(_AT_WORK, 1))
            said = time.monotonic()

    return say


def _meet(
    world: World, regions: list[str], error: BaseException | None, deadline: Deadline
) -> tuple[dict[int, dict], int]:
    """Tell the others how the innermost of `regions` went here, and learn how it went there.

    Returns what failed, by rank, and the rank that is to report it. Ranks wait for each other until the `deadline`,
    but GRACE_SECONDS once one has failed in this region or in one around it. However many ranks there are, each asks
    the store a few times.
    """
    store, region = dist.distributed_c10d._get_default_store(), regions[-1]
    if error is not None and not isinstance(error, RankFailed):  # which is the echo of a failure already told
        mistake = mistake_of(error)
        reason = " ".join((mistake or UserError(f"{type(error).__name__}: {error}")).as_typed.split())
        outcome = {"reason": reason, "mistake": mistake is not None, "lost": _is_lost_peer(error)}
        _tell(store, region, {world.rank: outcome})  # before arriving: who counts all arrivals finds this too
    heard = store.add(_AT_WORK, 0)
    _append(store, f"{region}/present", f"{world.rank} ")
    arrived = store.add(f"{region}/arrived", 1)

    pause = 0.001
    while arrived < world.size and time.monotonic() < deadline.at:
        time.sleep(pause)  # not store.wait: on a timeout it prints warnings of its own
        pause = min(2 * pause, 0.1)
        if any(store.check([f"{name}/failed"]) for name in regions):
            deadline.bring_forward(GRACE_SECONDS)
        elif error is None and (now := store.add(_AT_WORK, 0)) != heard:
            heard = now
            deadline.renew()
        arrived = store.add(f"{region}/arrived", 0)
    if arrived == world.size and not store.check([f"{region}/failed"]):
        return {}, 0

    parted.set()
    failures: dict[int, dict] = {}
    for name in [region] if arrived == world.size else regions:
        failures |= _told(store, name)
    present = sorted(map(int, store.get(f"{region}/present").split()))
    if all(outcome["lost"] for outcome in failures.values()):
        gone = sorted(set(range(world.size)) - set(present))
        at, reason = heartbeat.described(store, gone, collective_timeout()), _silence(error, deadline)
        missing = {
            rank: {
                "reason": f"{reason}: it is gone or stuck{at.get(rank, '')}",
                "mistake": False,
                "lost": False,
                "silent": True,
            }
            for rank in gone
        }
        # One of those that conclude tells all who are gone: should one of these arrive after all, it fails too.
        if (error is None or _is_late(error)) and _is_first(store, f"{region}/given_up", world):
            heartbeat.give_up(store, gone, regions[0])
        if _is_first(store, f"{region}/told", world):
            _tell(store, region, missing)
        failures = missing or failures
    failures = {rank: outcome for rank, outcome in failures.items() if not outcome["lost"]} or failures
    reporter = min(set(failures) & set(present) or present)
    # The first rank to conclude decides for all who reports: later ones may see more failures.
    return failures, int(store.compare_set(f"{region}/reporter", "", str(reporter)))


def _is_first(store: dist.Store, key: str, world: World) -> bool:
    return int(store.compare_set(key, "", str(world.rank))) == world.rank


def _tell(store: dist.Store, region: str, failures: dict[int, dict]) -> None:
    """Adds to a region's list of failures, which need not be read rank by rank."""
    _append(store, f"{region}/failed", "".join(f"{json.dumps([rank, told])}\n" for rank, told in failures.items()))


def _append(store: dist.Store, key: str, text: str) -> None:
    store.append(key, text)  # type: ignore[attr-defined]  # of which torch's stubs do not know


def _told(store: dist.Store, region: str) -> dict[int, dict]:
    """What was told of each rank, the first of several times."""
    if not store.check([f"{region}/failed"]):
        return {}
    lines = store.get(f"{region}/failed").decode().splitlines()
    return dict(json.loads(line) for line in reversed(lines))


def _silence(error: BaseException | None, deadline: Deadline) -> str:
    """How long others have waited for a rank."""
    since = f"gave no answer for {deadline.patience:g} s"
    waited = error is not None and _is_late(error)
    return f"took no part in a collective for {collective_timeout():g} s, and {since}" if waited else since


def _is_late(error: BaseException) -> bool:
    """True if `error` says that the time limit of a collective was over, and not that a connection was closed."""
    return any(sign in str(error).lower() for sign in ("timed out", "timeout"))


def _is_lost_peer(error: BaseException) -> bool:
    """True if `error` says no more than that another rank is gone or late: the reason is there."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _LOST_PEER)
