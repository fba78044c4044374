"""Which registered models the tests of all models are about."""

from eupmim_dist.config.registry import find, names
from eupmim_dist.data.batch import UserBatch


def of_histories() -> list[str]:
    """The models that are fed with histories; others have tests of their own."""
    return [name for name in names("model") if issubclass(UserBatch, find("model", name).build.batch_type)]  # type: ignore[attr-defined]
