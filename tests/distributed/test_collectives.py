"""The collectives that pass gradients back, over 1 to 4 ranks, against one process that holds all of it, in float64."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

from eupmim_dist.parallel import collectives
from eupmim_dist.parallel.world import init_world
from tests.distributed.spawn import Ranks

SIZES = pytest.mark.parametrize("size", [1, 2, 3, 4])
SHAPES = pytest.mark.parametrize("shape", [(5,), (3, 2), (4, 3, 2), (1,), (0,), (0, 3)], ids=str)


@pytest.fixture(scope="module")
def ranks() -> Iterator[dict[int, Ranks]]:
    with ExitStack() as stack:
        yield {size: stack.enter_context(Ranks(size)) for size in (1, 2, 3, 4)}


def values(rank: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(10 + rank)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def weighted(out: Tensor, rank: int) -> Tensor:
    """A loss of one rank, which weighs each element as no other rank does."""
    return (out * (torch.arange(out.numel()).view(out.shape) * 7 + 3 * rank + 1).sin()).sum()


def on_rank(name: str, given: list[Tensor], used: list[bool]) -> tuple[Tensor, Tensor]:
    """What a collective gives, and the gradient of all ranks' losses for what this one has put in."""
    world = init_world(cpu=True)
    mine = given[world.rank].requires_grad_()
    out = getattr(collectives, name)(mine, world)
    (weighted(out, world.rank) * used[world.rank]).backward()
    assert mine.grad is not None
    return out.detach(), mine.grad


def gathered(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts)


def total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


def logsumexp(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).exp().sum(0).log()


PLAIN: dict[str, Callable[[list[Tensor]], Tensor]] = {"gather": gathered, "total": total, "logsumexp": logsumexp}
every_collective = pytest.mark.parametrize("name", PLAIN)


def check(ranks: Ranks, name: str, given: list[Tensor], used: list[bool] | None = None) -> list[Tensor]:
    """Compares values and gradients; returns the gradients."""
    used = used or [True] * len(given)
    found = ranks.run(on_rank, name, given, used)
    leaves = [part.clone().requires_grad_() for part in given]
    expected = PLAIN[name](leaves)
    losses = [weighted(expected, rank) for rank, counts in enumerate(used) if counts]
    gradients = torch.autograd.grad(torch.stack(losses).sum(), leaves)
    for (out, gradient), other in zip(found, gradients, strict=True):
        torch.testing.assert_close(out, expected.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(out, found[0][0]) for out, _ in found)
    return [gradient for _, gradient in found]


@SIZES
@SHAPES
@every_collective
def test_values_and_gradients_are_those_of_one_process(
    ranks: dict[int, Ranks], name: str, shape: tuple[int, ...], size: int
) -> None:
    check(ranks[size], name, [values(rank, shape) for rank in range(size)])


@SIZES
@every_collective
def test_a_rank_whose_loss_does_not_count_still_has_the_others_gradients(
    ranks: dict[int, Ranks], name: str, size: int
) -> None:
    given = [values(rank, (3,)) for rank in range(size)]
    used = [rank == size - 1 for rank in range(size)]
    assert all(gradient.any() for gradient in check(ranks[size], name, given, used))


@SIZES
def test_a_logarithm_of_exponentials_may_be_minus_infinity_on_some_ranks(ranks: dict[int, Ranks], size: int) -> None:
    """As where a rank holds no rows; on one rank all must be finite."""
    given = [values(rank, (6,)) for rank in range(size)]
    for element in range(6):
        for rank in range(size):
            if rank != element % size and (element + rank) % 3:
                given[rank][element] = -torch.inf
    assert size < 2 or any(part.isneginf().any() for part in given)
    for part, gradient in zip(given, check(ranks[size], "logsumexp", given), strict=True):
        assert gradient.isfinite().all()
        assert not gradient[part.isneginf()].any()


@SIZES
def test_a_logarithm_of_exponentials_neither_overflows_nor_vanishes(ranks: dict[int, Ranks], size: int) -> None:
    given = [torch.tensor([900.0, -900.0, 900.0 * (-1) ** rank], dtype=torch.float64) for rank in range(size)]
    found = ranks[size].run(on_rank, "logsumexp", given, [True] * size)
    alike = math.log(size)
    expected = torch.tensor([900 + alike, -900 + alike, 900 + math.log(-(-size // 2))], dtype=torch.float64)
    for rank, (out, gradient) in enumerate(found):
        torch.testing.assert_close(out, expected)
        slopes = torch.stack([(torch.arange(3) * 7 + 3 * other + 1).sin() for other in range(size)]).sum(0)
        share = torch.tensor([1 / size, 1 / size, (rank % 2 == 0) / -(-size // 2)], dtype=torch.float64)
        torch.testing.assert_close(gradient, slopes.double() * share)


@SIZES
@every_collective
def test_what_is_no_number_on_one_rank_is_none_on_any(ranks: dict[int, Ranks], name: str, size: int) -> None:
    """So that all ranks skip the step."""
    given = [values(rank, (3,)) for rank in range(size)]
    given[-1][1] = torch.nan
    for out, _ in ranks[size].run(on_rank, name, given, [True] * size):
        wrong = out.isnan().nonzero().flatten().tolist()
        assert wrong == ([3 * size - 2] if name == "gather" else [1])


def strided(name: str, given: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What lies in memory column by column on odd ranks, with a gradient that is a single number, expanded."""
    world = init_world(cpu=True)
    mine = given[world.rank].requires_grad_()
    out = getattr(collectives, name)(mine.T.contiguous().T if world.rank % 2 else mine, world)
    out.sum().backward()
    assert mine.grad is not None
    return out.detach(), mine.grad


@SIZES
@every_collective
def test_how_a_tensor_lies_in_memory_does_not_matter(ranks: dict[int, Ranks], name: str, size: int) -> None:
    given = [values(rank, (3, 2)) for rank in range(size)]
    leaves = [part.clone().requires_grad_() for part in given]
    expected = PLAIN[name](leaves)
    (expected.sum() * size).backward()
    for leaf, (out, gradient) in zip(leaves, ranks[size].run(strided, name, given), strict=True):
        torch.testing.assert_close(out, expected.detach())
        torch.testing.assert_close(gradient, leaf.grad)


def unchanged(name: str) -> bool:
    world = init_world(cpu=True)
    mine = values(world.rank, (4,)).requires_grad_()
    before = mine.detach().clone()
    weighted(getattr(collectives, name)(mine, world), world.rank).backward()
    return torch.equal(mine, before)


@SIZES
@every_collective
def test_what_is_put_in_stays_as_it_is(ranks: dict[int, Ranks], name: str, size: int) -> None:
    assert all(ranks[size].run(unchanged, name))


def gathered_ids() -> tuple[Tensor, Tensor]:
    world = init_world(cpu=True)
    ids = torch.arange(3) + 10 * world.rank
    return collectives.gather(ids, world), collectives.gather(ids[:0], world)


@SIZES
def test_ids_are_gathered_too(ranks: dict[int, Ranks], size: int) -> None:
    expected = [place + 10 * rank for rank in range(size) for place in range(3)]
    for found, nothing in ranks[size].run(gathered_ids):
        assert found.dtype == torch.int64
        assert found.tolist() == expected
        assert nothing.shape == (0,)
