"""every_position against an oracle of loops over the users' sequences, which draws nothing itself.

What is drawn, where windows end and which of their places are trained, is read off a causal batch. Items do not repeat
in a user's sequence here, so a window is found where its last item stands.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.tasks.every_position import UNLESS_CAUSAL, EveryPosition, EveryPositionConfig
from eupmim_dist.tasks.interface import Setting
from tests.stores import small_store

LENGTH, BATCH = 6, 10
SPLITS = ("by_user", "leave_one_out")
POSITIONS = (1, 4, LENGTH, None)  # 4 is less than most windows have and more than the shortest
every_number = pytest.mark.parametrize("positions", POSITIONS)


@pytest.fixture(scope="module", params=SPLITS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> InteractionStore:
    """Users with 0 to 20 items."""
    directory = tmp_path_factory.mktemp("data") / "store"
    shortest = 0 if request.param == "by_user" else 3  # which leaves one to train on
    return small_store(directory, num_users=60, shortest=shortest, seed=1, split_rule=request.param)


def task(
    store: InteractionStore,
    positions: int | None = None,
    *,
    causal: bool = True,
    rank: int = 0,
    world_size: int = 1,
    batch: int = BATCH,
    seed: int = 1,
) -> EveryPosition:
    setting = Setting(store, seed, batch, causal, zero_untrained=True, rank=rank, world_size=world_size)
    return EveryPosition(EveryPositionConfig(history_length=LENGTH, num_positions=positions), setting)


def sequences(store: InteractionStore) -> dict[int, list[int]]:
    """What may be trained on, by user."""
    found = {}
    for user in range(store.num_users):
        items = store.items[store.offsets[user] : store.offsets[user + 1]].tolist()
        if store.split_rule == "leave_one_out":
            found[user] = items[:-2]
        elif store.split[user] == 0:
            found[user] = items
    return found


@dataclass
class Window:
    user: int
    items: list[int]
    """All that the user has."""
    end: int
    """Items before the last target of the window."""
    places: list[int]
    """Those trained, counted from the window's first item."""

    @property
    def first(self) -> int:
        return max(0, self.end - LENGTH)

    def target(self, place: int) -> int:
        return self.items[self.first + place + 1]

    def known(self, place: int) -> list[int]:
        """The last L items before the target."""
        return self.items[: self.first + place + 1][-LENGTH:]


def padded(items: list[int]) -> list[int]:
    return items + [NO_ROW] * (LENGTH - len(items))


def windows(store: InteractionStore, batch: UserBatch) -> list[Window]:
    """What a causal batch says of itself, by its users, last items and places."""
    assert batch.target is not None
    of_user, found = sequences(store), []
    for row, user in enumerate(batch.user.tolist()):
        items = of_user[user]
        last = [item for item in batch.history[row].tolist() if item != NO_ROW][-1]
        trained = batch.target[row] != NO_ROW
        found.append(Window(user, items, items.index(last) + 1, batch.position[row][trained].tolist()))
    return found


@every_number
def test_a_causal_batch_holds_windows_and_what_comes_next(store: InteractionStore, positions: int | None) -> None:
    drawn, number = task(store, positions), positions or LENGTH
    seen_partial = seen_whole = False
    for step in range(20):
        batch = drawn.sample(step)
        assert batch.target is not None
        assert batch.counter is not None
        assert batch.target.shape == batch.position.shape == batch.counter.shape == (BATCH, number)
        assert batch.capacity == len(batch) == BATCH
        slots = torch.arange(BATCH) + step * BATCH
        assert torch.equal(batch.counter, slots[:, None] * number + torch.arange(number))
        for row, window in enumerate(windows(store, batch)):
            length = len(window.items)
            assert min(LENGTH, length - 1) <= window.end < length
            inside = window.items[window.first : window.end]
            assert batch.history[row].tolist() == padded(inside)
            assert len(window.places) == min(number, len(inside))
            assert window.places == sorted(set(window.places))
            expected = [window.target(place) for place in window.places]
            missing = number - len(expected)
            assert batch.target[row].tolist() == expected + [NO_ROW] * missing
            assert batch.position[row].tolist() == window.places + [0] * missing
            assert all(0 <= place < len(inside) for place in window.places)
            assert batch.attributes[row].tolist() == store.attribute_values[window.user].tolist()
            seen_partial |= missing > 0
            seen_whole |= len(inside) == LENGTH
    assert seen_whole
    assert seen_partial or number == 1


@every_number
def test_without_causality_each_prediction_has_the_last_items_before_it(
    store: InteractionStore, positions: int | None
) -> None:
    number = positions or UNLESS_CAUSAL
    causal, other = task(store, number), task(store, positions, causal=False)
    beyond = False
    for step in range(20):
        same, batch = causal.sample(step), other.sample(step)
        assert same.counter is not None
        assert same.target is not None
        assert batch.target is not None
        assert batch.counter is not None
        assert batch.target.shape == batch.position.shape == batch.counter.shape == (BATCH * number, 1)
        assert batch.capacity == len(batch) == BATCH * number
        assert batch.num_predictions == same.num_predictions
        assert torch.equal(batch.counter.flatten(), same.counter.flatten())
        row = 0
        for window in windows(store, same):
            for place in window.places + [None] * (number - len(window.places)):
                known = [] if place is None else window.known(place)
                assert batch.user[row] == window.user
                assert batch.attributes[row].tolist() == store.attribute_values[window.user].tolist()
                assert batch.history[row].tolist() == padded(known)
                assert batch.target[row].tolist() == [NO_ROW if place is None else window.target(place)]
                assert batch.position[row].tolist() == [max(0, len(known) - 1)]
                beyond |= place is not None and len(known) > place + 1
                row += 1
    assert beyond  # histories go back further than the window


@pytest.mark.parametrize("causal", [True, False])
@every_number
@pytest.mark.parametrize("world_size", [2, 3, 4, 13])
def test_ranks_share_the_batch_of_one_rank(
    store: InteractionStore, positions: int | None, causal: bool, world_size: int
) -> None:
    for step in (0, 7, 1000):
        alone = task(store, positions, causal=causal)
        whole = alone.sample(step)
        assert whole.target is not None
        of_ranks = [task(store, positions, causal=causal, rank=r, world_size=world_size) for r in range(world_size)]
        parts = [rank.sample(step) for rank in of_ranks]
        for name in ("user", "attributes", "history", "position", "target", "counter"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
        real = int((whole.target != NO_ROW).sum())
        assert {part.num_predictions for part in [whole, *parts]} == {real}
        assert {part.capacity for part in parts} == {max(len(part) for part in parts)}
        for rank in [alone, *of_ranks]:
            assert torch.equal(rank.targets(step), whole.target.flatten())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("number", [2, 3, 25])
def test_micro_batches_are_the_batch_in_pieces(store: InteractionStore, causal: bool, number: int) -> None:
    for rank in (0, 3):  # of 3, 3, 3 and 1 samples
        batch = task(store, 4, causal=causal, rank=rank, world_size=4).sample(2)
        parts = [batch.micro_batch(index, number) for index in range(number)]
        for name in ("user", "attributes", "history", "position", "target", "counter"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name)), name
        assert {part.num_predictions for part in parts} == {batch.num_predictions}
        assert all(len(part) <= part.capacity for part in parts)
        assert {part.capacity for part in parts} == {-(-batch.capacity // number)}


def test_users_without_two_items_are_dropped_and_counted(store: InteractionStore) -> None:
    lengths = {user: len(items) for user, items in sequences(store).items()}
    assert set(lengths.values()) >= ({0, 1, 2} if store.split_rule == "by_user" else {1, 2})
    drawn = task(store)
    long_enough = sorted(user for user, length in lengths.items() if length >= 2)
    assert drawn.training.users.tolist() == long_enough
    assert drawn.training.num_dropped == len(lengths) - len(long_enough) > 0
    seen = {user for step in range(drawn.training.steps_per_epoch * 4) for user in drawn.sample(step).user.tolist()}
    assert seen == set(long_enough)


def test_a_store_of_single_items_cannot_be_trained_on(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", shortest=0, longest=1)
    with pytest.raises(UserError, match="no training user has two items"):
        task(store).sample(0)


def test_a_batch_of_users_with_two_items_predicts_the_second(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", shortest=2, longest=2)
    for causal in (True, False):
        batch = task(store, causal=causal).sample(0)
        assert batch.target is not None
        assert batch.num_predictions == BATCH
        real = batch.target != NO_ROW
        users = batch.user[real.any(1)]
        assert batch.target[real].tolist() == [int(store.items[store.offsets[user] + 1]) for user in users]
        assert batch.history[real.any(1), 0].tolist() == [int(store.items[store.offsets[user]]) for user in users]
        assert real.sum() == BATCH


def chi_square(counts: Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def test_places_and_ends_of_windows_are_uniform(store: InteractionStore) -> None:
    """Chi-square bounds are beyond one in a million for their degrees of freedom."""
    drawn = task(store, 2)
    places = torch.zeros(LENGTH, LENGTH)  # of pairs within whole windows
    lengths = {user: len(items) for user, items in sequences(store).items()}
    longest = max(lengths, key=lambda user: lengths[user])
    ends = torch.zeros(lengths[longest] - LENGTH)
    for step in range(1500):
        for window in windows(store, drawn.sample(step)):
            if len(window.places) == 2 and window.end >= LENGTH:
                places[window.places[0], window.places[1]] += 1
            if window.user == longest:
                ends[window.end - LENGTH] += 1
    pairs = places[torch.ones(LENGTH, LENGTH).triu(1).bool()]
    assert places.sum() == pairs.sum() > 5000
    assert chi_square(pairs) < 55  # 14 degrees of freedom
    assert ends.sum() > 200
    assert len(ends) >= 10
    assert chi_square(ends) < 55  # 13 at most


def test_a_step_is_drawn_anew_and_alike_whenever_it_is_asked_for(store: InteractionStore) -> None:
    """As after resuming: by another object, whatever was sampled before."""
    before = task(store, 4)
    drawn = [before.sample(step) for step in range(70)]
    for step in (69, 3, 66):
        again = task(store, 4).sample(step)
        for name in ("user", "history", "position", "target", "counter"):
            assert torch.equal(getattr(again, name), getattr(drawn[step], name)), name
    targets = {tuple(batch.target.flatten().tolist()) for batch in drawn if batch.target is not None}
    assert len(targets) == 70
    other = task(store, 4, seed=2).sample(3)
    assert not torch.equal(other.history, drawn[3].history)
    epoch = before.training.steps_per_epoch
    first, second = ({w.user: w for s in range(epoch) for w in windows(store, drawn[s + e * epoch])} for e in (0, 1))
    common = [user for user in first if user in second and len(first[user].items) > LENGTH]
    assert any((first[user].end, first[user].places) != (second[user].end, second[user].places) for user in common)


def test_no_user_comes_twice_in_an_epoch(store: InteractionStore) -> None:
    drawn = task(store)
    seen = [user for step in range(drawn.training.steps_per_epoch) for user in drawn.sample(step).user.tolist()]
    assert len(seen) == len(set(seen)) == drawn.training.steps_per_epoch * BATCH
    assert drawn.training.steps_per_epoch > 1


def test_users_to_rank_for_have_the_last_items_before_the_cut(store: InteractionStore) -> None:
    """An evaluation has the last L items before its cut, and one prediction, at the last of them."""
    users = store.users("valid")[:8]
    cuts, _ = store.evaluation_window(users, "valid")
    for causal in (True, False):
        batch = task(store, causal=causal).to_rank(users, cuts)
        for row, user in enumerate(users.tolist()):
            known = store.items[store.offsets[user] : store.offsets[user] + cuts[row]].tolist()[-LENGTH:]
            assert batch.history[row].tolist() == padded(known)
            assert batch.position[row].tolist() == [max(0, len(known) - 1)]
        assert batch.target is None


@every_number
def test_the_share_of_an_item_is_how_often_it_is_a_target(store: InteractionStore, positions: int | None) -> None:
    drawn = task(store, positions, batch=30)
    counts = torch.zeros(store.num_item_rows)
    for step in range(1000):
        target = drawn.sample(step).target.flatten()
        counts += torch.bincount(target[target != NO_ROW], minlength=store.num_item_rows)
    expected = drawn.target_share * counts.sum()
    assert float(drawn.target_share.sum()) == pytest.approx(1.0)
    assert ((counts - expected).abs() <= 6 * expected.sqrt() + 1e-9).all()
