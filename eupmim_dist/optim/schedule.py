"""Learning-rate schedules: a function of the step alone, so a resumed run needs no state of them."""

import math

from eupmim_dist.config.schema import TrainConfig


def rate_factor(config: TrainConfig, step: int) -> float:
    """What the learning rates of step `step` (from 0) are multiplied by, in [0, 1].

    Rises linearly over the first `warmup_steps`, reaching 1 with the last of them; then `linear` and `cosine` fall
    to 0 at `max_steps`, one step after the last.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, (step - config.warmup_steps) / (config.max_steps - config.warmup_steps))
    return 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
