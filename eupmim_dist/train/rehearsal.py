"""How long a step takes: the first ones are made in earnest, and timed."""

import time

from eupmim_dist.train.compiled import is_compiled
from eupmim_dist.train.loop import train
from eupmim_dist.train.state import Outcome, Run

WARM_UP, COMPILED_WARM_UP = 2, 3
"""Steps that are not counted: memory is taken in them, and the next ones are prepared meanwhile; a network that is
compiled is so in the first, recorded in the second and replayed in the third."""
SECONDS, MOST_STEPS = 5.0, 50
"""When there are enough."""


def seconds_of_a_step(run: Run) -> tuple[float, int]:
    """The mean, as rank 0 sees it, and of how many steps; the run has made them then. Collective.

    Of a run that has ended none, in no time.
    """
    compiled = is_compiled(run.config.train, run.world)
    warm_up = COMPILED_WARM_UP if compiled else WARM_UP
    watch = _Stopwatch(warm_up if compiled else 0)
    train(run, [watch])
    if len(watch.marks) == 1:
        return 0.0, 0
    marks = watch.marks[min(warm_up, len(watch.marks) - 2) :]
    return (marks[-1] - marks[0]) / (len(marks) - 1), len(marks) - 1


class _Stopwatch:
    def __init__(self, untimed: int) -> None:
        """`untimed`: steps that may take as long as they like."""
        self.untimed = untimed
        self.marks = [time.perf_counter()]

    def after_step(self, run: Run, outcome: Outcome) -> None:
        float(outcome.verdict.norm)  # waits for a GPU
        self.marks.append(time.perf_counter())
        counted = self.marks[self.untimed :]
        if len(self.marks) > MOST_STEPS or (len(counted) > 1 and counted[-1] - counted[0] > SECONDS):
            run.end_requested = True

    def at_end(self, run: Run) -> None:
        pass
