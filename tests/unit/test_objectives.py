"""The objectives on one rank against plain second implementations (tests/oracles/objectives_plain.py), in float64."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eupmim_dist.config.registry import find
from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import Encoded, TableSpec
from eupmim_dist.objectives import full_softmax, log_total
from eupmim_dist.objectives.full_softmax import FullSoftmax, FullSoftmaxConfig
from eupmim_dist.objectives.interface import Objective
from eupmim_dist.objectives.readout import READOUTS
from eupmim_dist.objectives.sampled_softmax import Sampled, SampledSoftmax, SampledSoftmaxConfig
from eupmim_dist.parallel.catalogue import ScoredRows, ShardedCatalogue
from eupmim_dist.parallel.placement import RowOrder, Shard
from eupmim_dist.tasks.interface import Setting, Task
from eupmim_dist.train.step import prepare_step, train_step
from tests.models import of_histories
from tests.oracles.objectives_plain import plain_full_softmax, plain_q, plain_routing, plain_sampled_softmax
from tests.oracles.tables_plain import PlainTable
from tests.runs import WORLD, config_of, start
from tests.stores import small_store

LENGTH, INTERESTS, DIM = 6, 3, 5
STEP = 4
EXACT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-13}
KINDS = ("uniform", "in_batch", "mixed")
every_readout = pytest.mark.parametrize("readout", READOUTS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> InteractionStore:
    """30 items, users with 2 to 20 of them."""
    return small_store(tmp_path_factory.mktemp("data") / "store", num_users=50, shortest=2)


def make_task(
    store: InteractionStore,
    name: str = "every_position",
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 1,
    causal: bool = True,
) -> Task:
    setting = Setting(store, seed, 6, causal, zero_untrained=True, rank=rank, world_size=world_size)
    registered = find("task", name)
    task: Task = registered.build(registered.config(history_length=LENGTH), setting)
    return task


def model(readout: str = "hard", tells_routing: bool = False) -> Any:
    """What an objective asks of a model."""
    return SimpleNamespace(readout=readout, tells_routing=tells_routing)


def full(task: Task, **config: Any) -> FullSoftmax:
    return FullSoftmax(FullSoftmaxConfig(**config), model(), task)


def sampled(task: Task, **config: Any) -> SampledSoftmax:
    return SampledSoftmax(SampledSoftmaxConfig(**config), model(tells_routing=True), task)


Make = Callable[..., Objective]
MAKERS: dict[str, Make] = {
    "full": full,
    "uniform": sampled,
    "in_batch": lambda task, **config: sampled(task, candidates="in_batch", hard_negatives=0.5, **config),
    "mixed": lambda task, **config: sampled(task, candidates="mixed", **config),
}
every_objective = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


class Setup:
    """A batch of `every_position`, some of whose predictions have no target, with random queries and item rows."""

    def __init__(self, store: InteractionStore, num_interests: int = INTERESTS) -> None:
        self.task = make_task(store)
        self.batch = self.task.sample(STEP)
        assert self.batch.target is not None
        self.targets = self.batch.target.flatten()
        self.nothing = self.targets == NO_ROW
        assert 0 < self.nothing.sum() < len(self.nothing)
        generator = torch.Generator().manual_seed(3)
        rows = torch.randn(store.num_item_rows, DIM, generator=generator, dtype=torch.float64)
        self.table = PlainTable(rows)
        shape = len(self.targets), num_interests, DIM
        self.queries = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        self.routing = torch.rand(*shape[:2], LENGTH, generator=generator, dtype=torch.float64).requires_grad_()

    def parts(
        self, objective: Objective, batch: UserBatch | None = None, queries: Tensor | None = None
    ) -> dict[str, Tensor]:
        batch = self.batch if batch is None else batch
        candidates = objective.draw(batch, STEP)
        rows = {name: self.table.rows(ids) for name, (_, ids) in candidates.uses().items()}
        self.catalogue = catalogue_of(self.table.weight.detach()) if objective.whole_catalogue else None
        encoded = Encoded(self.queries if queries is None else queries, routing=self.routing)
        found: dict[str, Tensor] = objective(encoded, rows, batch, candidates, self.catalogue)
        return found

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Of the queries and of the item rows, looked up or in the catalogue, in the order of ids."""
        self.queries.grad = None
        loss.backward()
        assert self.queries.grad is not None
        rows = self.table.take_gradient()
        if self.catalogue is not None:
            rows.index_add_(0, self.catalogue.part.shard.ids(), self.catalogue.gradient)
        return [self.queries.grad, rows]

    def check(self, found: Tensor, expected: Tensor) -> None:
        """Value, and gradients of queries and rows."""
        torch.testing.assert_close(found, expected, **EXACT)
        theirs = torch.autograd.grad(expected, [self.queries, self.table.weight])
        for gradient, other in zip(self.gradients(found), theirs, strict=True):
            assert other.abs().max() > 1e-3, "nothing to compare"
            torch.testing.assert_close(gradient, other, **EXACT)


def catalogue_of(weight: Tensor) -> ShardedCatalogue:
    """Of rows in the order of ids, in whatever float type they have."""
    order = RowOrder(len(weight))
    spec = TableSpec("item", len(weight), weight.shape[1], padding_row=0)
    ids = Shard(spec, order, 0, weight, replicated=False).ids()
    return ShardedCatalogue(ScoredRows(Shard(spec, order, 0, weight[ids], replicated=False), WORLD))


# ---- values and gradients


@pytest.mark.parametrize(
    ("tile", "temperature"), [((64, 1 << 18), 1.0), ((36, 7 * INTERESTS * 36), 0.6), ((5, 1000), 1.0), ((1, 1), 0.7)]
)
@every_readout
def test_full_softmax_is_the_oracles_in_one_tile_and_in_many(
    store: InteractionStore, monkeypatch: pytest.MonkeyPatch, readout: str, tile: tuple[int, int], temperature: float
) -> None:
    monkeypatch.setitem(log_total.TILES, "cpu", tile)
    setup = Setup(store)
    parts = setup.parts(full(setup.task, readout=readout, temperature=temperature))
    assert parts.keys() == {"cross_entropy"}
    expected = plain_full_softmax(
        setup.queries,
        setup.table.weight,
        setup.targets,
        setup.batch.num_predictions,
        readout=readout,
        temperature=temperature,
    )
    setup.check(parts["cross_entropy"], expected)


@pytest.mark.parametrize("num_interests", [1, INTERESTS])
@every_readout
def test_a_discounted_full_softmax_is_the_oracles(store: InteractionStore, readout: str, num_interests: int) -> None:
    setup = Setup(store, num_interests)
    discount = {"discount": 0.6, "temperature": 0.7}
    parts = setup.parts(full(setup.task, readout=readout, **discount))
    expected = plain_full_softmax(
        setup.queries,
        setup.table.weight,
        setup.targets,
        setup.batch.num_predictions,
        readout=readout,
        places=setup.batch.position,
        **discount,
    )
    setup.check(parts["cross_entropy"], expected)


@pytest.mark.parametrize("discount", [0.0, 0.6])
def test_a_full_softmax_with_room_for_more_queries_than_predict_is_the_same(
    store: InteractionStore, monkeypatch: pytest.MonkeyPatch, discount: float
) -> None:
    """As on a GPU, whose host does not know how many do."""
    setup = Setup(store)
    objective = full(setup.task, discount=discount)
    expected = setup.parts(objective)["cross_entropy"]
    gradients = setup.gradients(expected)
    assert (setup.targets <= 0).any(), "each place predicts"
    monkeypatch.setattr(full_softmax, "_room", lambda predicts, most: len(predicts))
    found = setup.parts(objective)["cross_entropy"]
    assert torch.equal(found, expected)
    for gradient, other in zip(setup.gradients(found), gradients, strict=True):
        torch.testing.assert_close(gradient, other, **EXACT)


@pytest.mark.parametrize("discount", [0.0, 0.6])
@every_readout
def test_a_full_softmax_asks_a_gpu_nothing(
    store: InteractionStore, monkeypatch: pytest.MonkeyPatch, readout: str, discount: float
) -> None:
    """Under fake tensors a shape that depends on what a tensor holds raises, and so does a number that is read off."""
    monkeypatch.setattr(full_softmax, "_room", lambda predicts, most: min(most, len(predicts)))
    setup = Setup(store)
    objective = full(setup.task, readout=readout, discount=discount)
    catalogue = catalogue_of(setup.table.weight.detach())
    drawn = objective.draw(setup.batch, STEP)
    queries, rows, target = setup.queries.detach(), catalogue.rows.detach(), setup.table.weight.detach()[setup.targets]

    with FakeTensorMode() as mode, torch.no_grad():
        there = mode.from_tensor
        catalogue.rows = there(rows)
        catalogue.part.ids, catalogue.part.places = there(catalogue.part.ids), there(catalogue.part.places)
        batch, drawn = setup.batch._map(there), drawn._map(there)
        found = objective(Encoded(there(queries)), {"target": there(target)}, batch, drawn, catalogue)["cross_entropy"]
        with pytest.raises(DynamicOutputShapeException):
            (drawn.target > 0).nonzero()
        assert found.shape == ()


def test_a_discount_is_refused_where_no_window_has_several_places(store: InteractionStore) -> None:
    with pytest.raises(UserError, match=r"objective.discount: 0.5: needs several places of a window"):
        full(make_task(store, causal=False), discount=0.5)


@pytest.mark.parametrize("num_interests", [1, INTERESTS])
@pytest.mark.parametrize(
    ("config", "readout"),
    [
        *(({"candidates": kind}, readout) for kind in KINDS for readout in READOUTS),
        ({"candidates": "in_batch", "log_q": False}, "hard"),
        ({"candidates": "mixed", "log_q": False, "temperature": 0.5}, "target"),
        ({"candidates": "uniform", "temperature": 0.5}, "logsumexp"),
        ({"candidates": "mixed", "temperature": 0.5}, "hard"),
        ({"candidates": "uniform", "hard_negatives": 0.7, "temperature": 2.0}, "target"),
        ({"candidates": "in_batch", "hard_negatives": 1.5, "log_q": False}, "hard"),
        ({"candidates": "in_batch", "hard_negatives": 0.7}, "mean"),
        ({"candidates": "mixed", "hard_negatives": 0.7, "temperature": 0.5}, "attention"),
    ],
    ids=str,
)
def test_sampled_softmax_is_the_oracles(
    store: InteractionStore, config: dict[str, Any], readout: str, num_interests: int
) -> None:
    setup = Setup(store, num_interests)
    number = {} if config["candidates"] == "in_batch" else {"num_negatives": 9}
    objective = sampled(setup.task, readout=readout, **number, **config)
    candidates = objective.draw(setup.batch, STEP)
    shared = [] if candidates.shared is None else candidates.shared.tolist()
    q = q_as_drawn(candidates)
    assert (q is not None) == (config["candidates"] != "uniform" and config.get("log_q", True))
    expected = plain_sampled_softmax(
        setup.queries,
        setup.table.weight,
        candidates.own,
        shared,
        setup.batch.num_predictions,
        readout=readout,
        temperature=objective.config.temperature,
        hard_negatives=objective.config.hard_negatives,
        q=q,
    )
    parts = setup.parts(objective)
    assert parts.keys() == {"cross_entropy"}
    setup.check(parts["cross_entropy"], expected)


def q_as_drawn(candidates: Sampled) -> dict[int, float] | None:
    """By item, as float64 of the float32 logarithms that the loss is given."""
    if candidates.own_log_q is None:
        return None
    assert candidates.shared is not None
    assert candidates.shared_log_q is not None
    ids = torch.cat([candidates.own.flatten(), candidates.shared])
    log_q = torch.cat([candidates.own_log_q.flatten(), candidates.shared_log_q])
    return dict(zip(ids.tolist(), log_q.double().exp().tolist(), strict=True))


@pytest.mark.parametrize("kind", ["in_batch", "mixed"])
def test_how_likely_a_candidate_is_drawn_is_the_oracles(store: InteractionStore, kind: str) -> None:
    setup = Setup(store)
    counts = setup.task.target_share.clone()
    if kind == "mixed":
        counts[[3, 5, 8, 13]] = 0  # no item of this store is unseen by training
        counts /= counts.sum()
    setup.task.target_share = counts
    drawn = 30 if kind == "mixed" else 0
    number = {"num_negatives": drawn} if drawn else {}
    found = q_as_drawn(sampled(setup.task, candidates=kind, **number).draw(setup.batch, STEP))
    assert found is not None
    checked = 0
    for item, q in found.items():
        if item != NO_ROW and (counts[item] or drawn):
            number = setup.batch.num_predictions
            expected = plain_q(item, counts.tolist(), batch_size=number, num_drawn=drawn)
            assert q == pytest.approx(expected, rel=1e-6)
            checked += 1
    assert checked > 15
    assert all(0.0 < q <= 1.0 for q in found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_routing_regulariser_is_the_oracles(store: InteractionStore, kind: str) -> None:
    setup = Setup(store)
    parts = setup.parts(sampled(setup.task, candidates=kind, routing_regulariser=0.3))
    assert parts.keys() == {"cross_entropy", "routing"}
    expected = 0.3 * plain_routing(setup.routing, setup.targets, setup.batch.num_predictions)
    torch.testing.assert_close(parts["routing"], expected, **EXACT)
    [ours] = torch.autograd.grad(parts["routing"], [setup.routing])
    [theirs] = torch.autograd.grad(expected, [setup.routing])
    torch.testing.assert_close(ours, theirs, **EXACT)
    assert not ours[setup.nothing].any()


def test_hard_negatives_are_finite_where_there_is_no_negative(store: InteractionStore) -> None:
    """All targets of the batch are one item, or there is one prediction alone: nothing is left to tell it from."""
    setup = Setup(store)
    objective = sampled(setup.task, candidates="in_batch", hard_negatives=0.5)
    for number, shared in ((2, [7, 7]), (1, [7]), (3, [7, NO_ROW, 7])):
        own = torch.full((number, 1), 7)
        zeros = torch.zeros(number, 1), torch.zeros(len(shared))
        for candidates in (Sampled(own, torch.tensor(shared)), Sampled(own, torch.tensor(shared), *zeros)):
            rows = {name: setup.table.rows(ids) for name, (_, ids) in candidates.uses().items()}
            queries = setup.queries[:number]
            found = objective(Encoded(queries), rows, setup.batch, candidates, None)["cross_entropy"]
            assert found == 0
            assert not torch.autograd.grad(found, [queries])[0].any()  # nor NaN, which counts as true


@every_readout
@every_objective
def test_a_prediction_without_a_target_counts_nothing(store: InteractionStore, make: Make, readout: str) -> None:
    setup = Setup(store)
    objective = make(setup.task, readout=readout)
    before = setup.gradients(setup.parts(objective)["cross_entropy"])
    with torch.no_grad():
        setup.queries[setup.nothing] *= 100.0
    after = setup.gradients(setup.parts(objective)["cross_entropy"])
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    assert not after[0][setup.nothing].any()
    assert after[0][~setup.nothing].any(-1).any(-1).all()


@pytest.mark.parametrize("make", [MAKERS["full"], MAKERS["in_batch"], MAKERS["mixed"]], ids=["full", *KINDS[1:]])
def test_the_padding_is_no_candidate(store: InteractionStore, make: Make) -> None:
    setup = Setup(store)
    objective = make(setup.task)
    value = setup.parts(objective)["cross_entropy"]
    assert not setup.gradients(value)[1][0].any()
    with torch.no_grad():
        setup.table.weight[0] = 50.0
    assert torch.equal(setup.parts(objective)["cross_entropy"], value)


@every_readout
@every_objective
def test_a_rank_without_predictions_gives_zeros_that_depend_on_the_queries(
    store: InteractionStore, make: Make, readout: str
) -> None:
    setup = Setup(store)
    empty = setup.queries[:0]
    for found in setup.parts(make(setup.task, readout=readout), setup.batch.samples(0, 0), empty).values():
        assert found == 0
        assert torch.autograd.grad(found, [empty])[0].shape == empty.shape


@every_objective
@pytest.mark.parametrize("count", [2, 4, 7])
def test_the_shares_of_micro_batches_add_up(store: InteractionStore, make: Make, count: int) -> None:
    setup = Setup(store)
    objective = make(setup.task)
    whole = setup.parts(objective)["cross_entropy"]
    micro_batches = [setup.batch.micro_batch(index, count) for index in range(count)]
    queries = setup.queries.split([len(part) * LENGTH for part in micro_batches])
    parts = [setup.parts(objective, part, q) for part, q in zip(micro_batches, queries, strict=True)]
    torch.testing.assert_close(sum(part["cross_entropy"] for part in parts), whole, **EXACT)


@every_readout
def test_the_models_readout_holds_unless_another_is_asked_for(store: InteractionStore, readout: str) -> None:
    task = make_task(store)
    assert FullSoftmax(FullSoftmaxConfig(), model(readout), task).readout == readout
    assert SampledSoftmax(SampledSoftmaxConfig(), model(readout), task).readout == readout
    for other in READOUTS:
        assert full(task, readout=other).readout == sampled(task, readout=other).readout == other


class Largest(TorchDispatchMode):
    """The most elements that any tensor has which is made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@every_readout
def test_scores_of_all_items_neither_exist_at_once_nor_are_kept(
    store: InteractionStore, monkeypatch: pytest.MonkeyPatch, readout: str
) -> None:
    """What the backward pass needs is the rows themselves, and little more."""
    predictions, rows = 16, 2001
    generator = torch.Generator().manual_seed(0)
    weight, target = torch.randn(rows, DIM, generator=generator), torch.arange(1, 1 + predictions)[:, None]
    queries = torch.randn(predictions, INTERESTS, DIM, generator=generator).requires_grad_()
    monkeypatch.setitem(log_total.TILES, "cpu", (predictions, 50 * predictions * INTERESTS))
    objective, batch = full(make_task(store), readout=readout), plain_batch(target)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            drawn = objective.draw(batch, STEP)
            found = objective(Encoded(queries), {"target": weight[target[:, 0]]}, batch, drawn, catalogue_of(weight))
        found["cross_entropy"].backward()
    assert largest.elements <= weight.numel()
    assert sum(kept.values()) <= 1.2 * weight.numel() < predictions * rows / 2


def plain_batch(target: Tensor) -> UserBatch:
    """Of targets [B, P], and of nothing else that an objective would look at."""
    number, nothing = len(target), torch.zeros(len(target), 0)
    return UserBatch(number, number, nothing, nothing, nothing, nothing, target)


def test_gradients_of_narrow_queries_are_summed_over_blocks_without_loss(
    store: InteractionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast; a sum of the many blocks in bfloat16 was 11 % off."""
    predictions, rows = 16, 5001
    generator = torch.Generator().manual_seed(0)
    weight = 0.05 + 0.1 * torch.randn(rows, DIM, generator=generator)
    target = torch.randint(1, rows, (predictions, 1), generator=generator)
    first = torch.randn(predictions, 1, DIM, generator=generator)
    batch, objective = plain_batch(target), full(make_task(store))
    gradients = []
    for dtype, chunk in ((torch.float32, (64, 1 << 18)), (torch.bfloat16, (predictions, 5 * predictions))):
        monkeypatch.setitem(log_total.TILES, "cpu", chunk)
        queries = first.detach().to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            parts = objective(Encoded(queries), {}, batch, objective.draw(batch, STEP), catalogue_of(weight))
        parts["cross_entropy"].backward()
        assert queries.grad is not None
        gradients.append(queries.grad.float())
    assert (gradients[1] - gradients[0]).norm() < 0.01 * gradients[0].norm()


# ---- draws

TASKS = [("next_item", False), ("every_position", True), ("every_position", False)]
every_task = pytest.mark.parametrize(("name", "causal"), TASKS)
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@every_task
@pytest.mark.parametrize("world_size", [3, 13])
def test_draws_do_not_depend_on_the_number_of_ranks(
    store: InteractionStore, name: str, causal: bool, kind: str, world_size: int
) -> None:
    for step in (0, 1000):
        task = make_task(store, name, causal=causal)
        whole = sampled(task, candidates=kind).draw(task.sample(step), step)
        parts = []
        for rank in range(world_size):
            own = make_task(store, name, causal=causal, rank=rank, world_size=world_size)
            objective, batch = sampled(own, candidates=kind), own.sample(step)
            parts += [objective.draw(batch.micro_batch(index, 3), step) for index in range(3)]
            assert torch.equal(objective.draw(batch, step).own, torch.cat([part.own for part in parts[-3:]]))
        assert torch.equal(torch.cat([part.own for part in parts]), whole.own)
        if kind == "uniform":
            assert whole.shared is whole.own_log_q is whole.shared_log_q is None
            continue
        assert whole.own_log_q is not None
        assert torch.equal(torch.cat([part.own_log_q for part in parts if part.own_log_q is not None]), whole.own_log_q)
        for part in parts:
            for of_part, expected in ((part.shared, whole.shared), (part.shared_log_q, whole.shared_log_q)):
                assert of_part is not None
                assert expected is not None
                assert torch.equal(of_part, expected)


@every_kind
def test_draws_change_with_the_step_and_the_seed_alone(store: InteractionStore, kind: str) -> None:
    def drawn(step: int, seed: int) -> list[list[int]]:
        task = make_task(store, seed=seed)
        found = sampled(task, candidates=kind).draw(task.sample(step), step)
        return [*found.own.tolist(), [] if found.shared is None else found.shared.tolist()]

    assert drawn(3, 1) == drawn(3, 1)
    assert drawn(3, 1) != drawn(4, 1)
    assert drawn(3, 1) != drawn(3, 2)


@every_task
def test_uniform_negatives_are_neither_in_the_history_nor_the_target(
    store: InteractionStore, name: str, causal: bool
) -> None:
    task = make_task(store, name, causal=causal)
    objective = sampled(task, num_negatives=8)
    batch = task.sample(STEP)
    assert batch.target is not None
    per_sample = batch.target.shape[1]
    own = objective.draw(batch, STEP).own
    assert torch.equal(own[:, 0], batch.target.flatten())
    different = set()
    for prediction, (target, *negatives) in enumerate(own.tolist()):
        if target == NO_ROW:
            assert negatives == [NO_ROW] * 8
            continue
        assert len(set(negatives)) == 8
        assert not set(negatives) & {target, NO_ROW, *batch.history[prediction // per_sample].tolist()}
        different.add(tuple(negatives))
    assert len(different) == (own[:, 0] != NO_ROW).sum()  # predictions of one user draw apart


def test_candidates_in_the_batch_are_the_targets_of_all_ranks(store: InteractionStore) -> None:
    for name, causal in TASKS:
        parts = [make_task(store, name, causal=causal, rank=rank, world_size=3) for rank in range(3)]
        targets = torch.cat([task.sample(STEP).target.flatten() for task in parts])  # type: ignore[union-attr]
        for task in parts:
            shared = sampled(task, candidates="in_batch").draw(task.sample(STEP), STEP).shared
            assert shared is not None
            assert torch.equal(shared, targets)


def test_mixed_candidates_end_with_uniform_ones(store: InteractionStore) -> None:
    task, number, steps = make_task(store), 25, 120
    objective = sampled(task, candidates="mixed", num_negatives=number)
    counts = torch.zeros(store.num_item_rows)
    for step in range(steps):
        shared = objective.draw(task.sample(step), step).shared
        assert shared is not None
        assert torch.equal(shared[:-number], task.targets(step))
        counts += torch.bincount(shared[-number:], minlength=len(counts))
    assert counts[0] == 0
    expected = number * steps / (len(counts) - 1)
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 60  # 29 degrees of freedom


# ---- mistakes


def test_too_many_negatives_are_refused_with_the_number_that_is_possible(store: InteractionStore) -> None:
    task = make_task(store, "next_item")
    room = store.num_item_rows - LENGTH - 1
    message = rf"objective\.num_negatives: {room + 1} distinct .* {store.num_item_rows} item rows; use at most {room}$"
    with pytest.raises(UserError, match=message):
        sampled(task, num_negatives=room + 1)
    batch = task.sample(STEP)
    assert (batch.history != NO_ROW).all(1).any()
    assert sampled(task, num_negatives=room).draw(batch, STEP).own.shape == (6, 1 + room)
    sampled(task, candidates="mixed", num_negatives=room + 1).draw(batch, STEP)  # these may repeat


def test_a_model_that_does_not_tell_its_routing_cannot_have_it_regularised(tmp_path: Path) -> None:
    objective = {"routing_regulariser": 0.1, "num_negatives": 5}
    with pytest.raises(UserError, match=r"objective\.routing_regulariser: .*leave it out, or choose .* comirec_sa"):
        start(config_of(tmp_path, objective=objective))
    run = start(config_of(tmp_path, objective=objective, model={"name": "comirec_sa", "dim": 8}))
    assert train_step(run, 0, prepare_step(run, 0)).shares["routing"] > 0


@pytest.mark.parametrize("name", of_histories())
def test_models_tell_their_routing_if_they_say_so(tmp_path: Path, name: str) -> None:
    run = start(config_of(tmp_path, model={"name": name, "dim": 8}))
    batch = run.task.sample(0)
    encoded = run.model(run.tables.lookup(run.model.uses(batch)).rows[0], batch)
    assert (encoded.routing is not None) == run.model.tells_routing
    if encoded.routing is not None:
        assert encoded.routing.shape == (*encoded.queries.shape[:2], batch.history.shape[1])
