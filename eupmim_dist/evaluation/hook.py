"""Evaluates the valid split every so many steps; early stopping and `best` go by its protocol and metric."""

from eupmim_dist.config.schema import EvaluationConfig, ModelSection
from eupmim_dist.evaluation.interest_use import InterestUse
from eupmim_dist.evaluation.judging import judge
from eupmim_dist.evaluation.runner import Result
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.metrics import MetricsWriter
from eupmim_dist.telemetry.progress import time_of_day
from eupmim_dist.telemetry.throughput import SECONDS, Throughput
from eupmim_dist.train.state import Outcome, Run


class EvaluationHook:
    def __init__(self, writer: MetricsWriter, throughput: Throughput) -> None:
        self.writer, self.throughput = writer, throughput
        self._warned = False

    def after_step(self, run: Run, outcome: Outcome) -> None:
        if run.progress.step % run.config.evaluation.every == 0:
            self._evaluate(run)

    def at_end(self, run: Run) -> None:
        # A run that evaluates more rarely than it trains steps still gets a best checkpoint.
        if run.progress.step % run.config.evaluation.every and not run.asked_to_leave:
            self._evaluate(run)

    def _evaluate(self, run: Run) -> None:
        config = run.config.evaluation
        with self.throughput.pause() as pause:
            result = judge(run, "valid", config.protocol, cutoffs_of(config), sample=config.users)
        self.writer.log(run.progress.step, _tags(result) | {f"{SECONDS}evaluation": pause.seconds})
        self._look_at(run, result.interests)
        self._judge(run, result)

    def _look_at(self, run: Run, interests: InterestUse | None) -> None:
        """Warns once where interests do not differ any more; not at the first evaluation, when they may not yet."""
        first = run.progress.best_value is None
        if interests is not None and interests.collapsed and not first and not self._warned:
            self._warned = True
            model = run.config.model
            get_logger(run.world.rank).warning(
                f"step {run.progress.step}: {model.name}: {interests}: one does the work of all; {_mend(model)}"
            )

    def _judge(self, run: Run, result: Result) -> None:
        progress, config = run.progress, run.config.evaluation
        value = result.metrics[config.metric]
        if progress.best_value is None or value > progress.best_value:
            progress.best_value, progress.best_step = value, progress.step
            progress.evaluations_since_best = 0
        else:
            progress.evaluations_since_best += 1
            progress.stopped = bool(config.patience) and progress.evaluations_since_best >= config.patience
        best = "best so far"
        if progress.best_step != progress.step:
            best = f"best {progress.best_value:.4f} at {progress.best_step}"
        some = f" of {result.users:,} {result.counted}" if config.users else ""
        told = f"step {progress.step}  valid {config.protocol} {config.metric} {value:.4f}{some}, {best}"
        get_logger(run.world.rank).info(f"{time_of_day()}  {told}")


def cutoffs_of(config: EvaluationConfig) -> list[int]:
    """At which the valid split is evaluated."""
    return sorted({*([] if config.cutoff is None else [config.cutoff]), *config.top_n})


def _mend(model: ModelSection) -> str:
    settings = model.against_collapse()
    return f"{' and '.join(settings)} may help: " * bool(settings) + "see docs/results.md (Interests)"


def _tags(result: Result) -> dict[str, float]:
    used = {} if result.interests is None else result.interests.tags()
    return result.tags() | {f"interests/{name}": value for name, value in used.items()}
