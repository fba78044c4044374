"""The limit of open files: raised as far as ranks need and the system allows, else refused with the number."""

import resource

import pytest

from eupmim_dist.errors import UserError
from eupmim_dist.parallel import descriptors

MANY = 100_000
"""Ranks, more than any test of ours may change the limit for."""


class Limit:
    def __init__(self, monkeypatch, soft, hard):
        self.limits = soft, hard
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.limits)
        monkeypatch.setattr(resource, "setrlimit", self._set)

    def _set(self, _, limits):
        soft, hard = limits
        if hard != self.limits[1] or (hard != resource.RLIM_INFINITY and not 0 <= soft <= hard):
            raise ValueError("not allowed to raise maximum limit")
        self.limits = limits


@pytest.mark.parametrize("hard", [resource.RLIM_INFINITY, 1 << 20])
def test_the_limit_is_raised_as_far_as_ranks_need_it(monkeypatch, hard):
    limit = Limit(monkeypatch, 1024, hard)
    descriptors.allow(64)
    assert limit.limits == (1024, hard)  # which is enough
    descriptors.allow(1000)
    assert limit.limits == (descriptors.needed(1000), hard)
    descriptors.check(1000)
    descriptors.allow(64)
    assert limit.limits == (descriptors.needed(1000), hard)  # never lowered


def test_ranks_that_do_not_fit_are_refused_with_how_many_they_need(monkeypatch):
    limit = Limit(monkeypatch, 1024, 4096)
    descriptors.allow(MANY)
    assert limit.limits == (4096, 4096)
    wanted = descriptors.needed(MANY)
    told = rf"may open 4096 files, and each of {MANY} ranks needs {wanted}, .*`ulimit -n {wanted}`"
    with pytest.raises(UserError, match=told):
        descriptors.check(MANY)


def test_no_limit_is_no_limit(monkeypatch):
    limit = Limit(monkeypatch, resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    descriptors.allow(MANY)
    descriptors.check(MANY)
    assert limit.limits == (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def test_deepspeed_has_a_mesh_of_its_own(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    plain = descriptors.needed(100)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert descriptors.needed(100) - plain > 100
