"""eupmim_dist: distributed training of multi-interest recommenders with sharded embedding tables.

    from eupmim_dist import fit, prepare, recommend

docs/python.md shows these in use. What is taken from here is imported when it is: the command line shows its help
without waiting for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from eupmim_dist.api import Fitted, evaluate, fit, load
    from eupmim_dist.auditing.audit import audit
    from eupmim_dist.auditing.findings import Audit
    from eupmim_dist.comparison.compare import compare
    from eupmim_dist.comparison.results import Comparison
    from eupmim_dist.config.schema import Config
    from eupmim_dist.errors import UserError
    from eupmim_dist.evaluation.frames import Results
    from eupmim_dist.recommending import recommend, recommend_batches
    from eupmim_dist.reporting.report import report
    from eupmim_dist.stores import prepare, synthesize
    from eupmim_dist.train.callbacks import Callback
    from eupmim_dist.tuning.results import Tuning
    from eupmim_dist.tuning.tune import tune

_HOMES = {
    "Audit": "auditing.findings",
    "Callback": "train.callbacks",
    "Comparison": "comparison.results",
    "Config": "config.schema",
    "Fitted": "api",
    "Results": "evaluation.frames",
    "Tuning": "tuning.results",
    "UserError": "errors",
    "audit": "auditing.audit",
    "compare": "comparison.compare",
    "evaluate": "api",
    "fit": "api",
    "load": "api",
    "prepare": "stores",
    "recommend": "recommending",
    "recommend_batches": "recommending",
    "report": "reporting.report",
    "synthesize": "stores",
    "tune": "tuning.tune",
}
"""The module that each of them is in."""

__all__ = [
    "Audit",
    "Callback",
    "Comparison",
    "Config",
    "Fitted",
    "Results",
    "Tuning",
    "UserError",
    "audit",
    "compare",
    "evaluate",
    "fit",
    "load",
    "prepare",
    "recommend",
    "recommend_batches",
    "report",
    "synthesize",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
