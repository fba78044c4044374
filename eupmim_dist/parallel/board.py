"""What ranks tell each other before there is a process group, through the store of the launcher or of rank 0."""

import json
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from eupmim_dist.errors import UserError, listed
from eupmim_dist.telemetry.log import get_logger

PATIENCE_SECONDS = 15
"""After which rank 0 says whom all wait for."""
JOINED = "eupmim/joined"
"""Keys of the nodes whose ranks have met here: by them a launcher tells the store of an attempt that has failed."""
STORE_SECONDS = 1.0
"""After a failure, how long the store stays for the others to read why; it goes with a process of rank 0's host."""


class Late(UserError):
    """A rank did not come."""


def holds_store(rank: int) -> bool:
    """Whether this rank's process holds the store, and not a launcher's."""
    return rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


class Board:
    """What ranks tell each other through the store, each thing once; rank 0 reads what all say, the others its answer.

    So that the store is asked as many times as there are ranks, and not that squared.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout.total_seconds()

    def tell(self, what: str, find: Callable[[], Any], conclude: Callable[[list[Any]], Any]) -> Any:
        """What `conclude` makes on rank 0 of what `find` returns on each rank. What one of them raises, all raise."""
        self.store.set(f"{what}/{self.rank}", json.dumps(self._answer(find)))
        self.store.add(f"{what}/arrived", 1)
        if self.rank == 0:
            answer = self._answer(lambda: conclude(self._all(what)))
            self.store.set(f"{what}/answer", json.dumps(answer))
        else:
            answer = self._answer_of_main(what)
        if "mistake" in answer:
            raise self._told_once((Late if answer["late"] else UserError)(answer["mistake"]))
        return answer["value"]

    def _answer(self, find: Callable[[], Any]) -> dict[str, Any]:
        try:
            return {"value": find()}
        except UserError as error:
            return {"mistake": error.as_typed, "late": isinstance(error, Late)}
        except dist.DistError:
            raise
        except Exception as error:  # of the system; the others must not wait for what never comes
            told = f"rank {self.rank} on {socket.gethostname()}: {type(error).__name__}: {error}"
            return {"mistake": told, "late": False}

    def _all(self, what: str) -> list[Any]:
        """On rank 0: what all have found."""
        started, warned, pause = time.monotonic(), False, 0.001
        while self.store.add(f"{what}/arrived", 0) < self.size:
            waited = time.monotonic() - started
            if waited > min(PATIENCE_SECONDS, self.timeout) and not warned:
                warned = True
                get_logger(self.rank).warning(f"waiting for rank {self._missing(what)} of {self.size}")
            if waited > self.timeout:
                raise self._late(self._missing(what))
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        every = [json.loads(each) for each in self.store.multi_get([f"{what}/{rank}" for rank in range(self.size)])]
        if mistakes := [each["mistake"] for each in every if "mistake" in each]:
            raise UserError(mistakes[0])
        return [each["value"] for each in every]

    def _answer_of_main(self, what: str) -> dict[str, Any]:
        deadline, main_is_here, pause = time.monotonic() + self.timeout, False, 0.001
        while not self.store.check([f"{what}/answer"]):
            if not main_is_here and self.store.check([f"{what}/0"]):
                main_is_here = True  # and will say who is late
                deadline = time.monotonic() + self.timeout + 2 * STORE_SECONDS
            if time.monotonic() > deadline:
                raise self._told_once(self._late("0"))
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        answer: dict[str, Any] = json.loads(self.store.get(f"{what}/answer"))
        return answer

    def _missing(self, what: str) -> str:
        return listed(rank for rank in range(self.size) if not self.store.check([f"{what}/{rank}"]))

    def _late(self, missing: str) -> Late:
        mend = "look at what it says there, and start all hosts with as many ranks and the same program"
        return Late(f"rank {missing} of {self.size} did not come within {self.timeout:g} s; {mend}")

    def _told_once(self, error: UserError) -> UserError:
        """The first of each host prints it; the others wait, as their launcher ends all ranks with the first."""
        host = f"{socket.gethostname()}/{os.environ.get('GROUP_RANK', '')}"
        first = self.store.add(f"told/{host}", 1) == 1
        time.sleep(STORE_SECONDS if first else 2 * STORE_SECONDS)
        error.reported_elsewhere = not first  # type: ignore[attr-defined]
        return error
