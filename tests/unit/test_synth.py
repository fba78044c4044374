from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from eupmim_dist.cli.prepare import prepare
from eupmim_dist.cli.synth import synth
from eupmim_dist.data import synth as synth_module
from eupmim_dist.data.prepare import no_progress
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.synth import NUM_STYLES, NUM_TRAITS, make_world, synthesize
from eupmim_dist.errors import UserError


def made(out: Path, num_users: int = 600, num_items: int = 300, seed: int = 1, **changes: int) -> InteractionStore:
    settings = {"mean_length": 20, **changes}
    synthesize(out, num_users, num_items, seed=seed, force=False, progress=no_progress, **settings)
    return InteractionStore.open(out)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> InteractionStore:
    return made(tmp_path_factory.mktemp("synth") / "store")


def histories(store: InteractionStore) -> list[np.ndarray]:
    return np.split(np.asarray(store.items), store.offsets[1:-1])


def test_shape_of_the_data(store: InteractionStore) -> None:
    assert (store.num_users, store.num_item_rows, store.split_rule) == (600, 301, "by_user")
    assert [(a.name, a.cardinality) for a in store.attributes] == [("age", 7), ("gender", 2), ("occupation", 21)]
    assert [len(store.users(split)) for split in ("train", "valid", "test")] == [480, 60, 60]
    lengths = store.lengths(np.arange(600))
    assert lengths.min() >= 5
    assert lengths.max() <= 30
    assert lengths.mean() == pytest.approx(20, rel=0.05)
    assert store.items.min() >= 1
    assert store.items.max() <= 300
    assert all(len(set(items)) == len(items) for items in histories(store))
    assert (store.attribute_values >= 0).all()
    assert (store.attribute_values.max(axis=0) == [6, 1, 20]).all()
    assert store.raw_user_ids(np.array([599])) == ["599"]


def test_titles_name_the_planted_topic(store: InteractionStore) -> None:
    titles = store.item_titles()
    world = make_world(300, 20, seed=1)
    assert titles is not None
    assert titles[world.item_id[7, 12]] == "Topic 7: item 12"


def test_profiles_and_sessions_are_in_the_data(store: InteractionStore) -> None:
    world = make_world(300, 20, seed=1)
    num_topics, size = world.item_id.shape
    place = np.zeros(301, np.int64)
    place[world.item_id.ravel()] = np.arange(num_topics * size)
    same_topic, typical_style, typical_next = [], [], []
    for user, items in enumerate(histories(store)):
        age, gender, occupation = store.attribute_values[user]
        traits = [synth_module.AGE_BANDS[age], gender, world.occupation_class[occupation]]
        topics, styles = place[items] // size, place[items] % size % NUM_STYLES
        wanted = [world.typical_style[topic, traits[topic % NUM_TRAITS]] for topic in topics]
        same_topic.append(np.mean(topics[1:] == topics[:-1]))
        typical_style.append(np.mean(styles == wanted))
        for topic, following in pairwise(topics):
            if following != topic:
                first, second = traits[(topic + 1) % NUM_TRAITS], traits[(topic + 2) % NUM_TRAITS]
                typical_next.append(following == world.next_topic[topic, first, second])
    assert np.mean(same_topic) > 0.7
    assert np.mean(typical_style) > 0.6  # by chance 1 / 4
    assert np.mean(typical_next) > 0.3  # by chance 1 / 10


def test_data_is_a_function_of_the_seed(store: InteractionStore, tmp_path: Path) -> None:
    assert made(tmp_path / "same").fingerprint == store.fingerprint
    assert made(tmp_path / "other", seed=2).fingerprint != store.fingerprint


def test_blocks_are_drawn_independently(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whole blocks before the last stay the same when users are added, so order of drawing cannot matter."""
    monkeypatch.setattr(synth_module, "BLOCK_USERS", 100)
    few, many = made(tmp_path / "few", num_users=250), made(tmp_path / "many", num_users=420)
    end = few.offsets[200]
    np.testing.assert_array_equal(few.offsets[:201], many.offsets[:201])
    np.testing.assert_array_equal(few.items[:end], many.items[:end])
    np.testing.assert_array_equal(few.attribute_values[:200], many.attribute_values[:200])
    assert not np.array_equal(many.attribute_values[:100], many.attribute_values[100:200])


@pytest.mark.parametrize("num_items", [120, 121, 997, 5000])
def test_odd_sizes(tmp_path: Path, num_items: int) -> None:
    store = made(tmp_path / "store", num_users=11, num_items=num_items, mean_length=10)
    assert store.num_item_rows == num_items + 1
    assert store.items.max() <= num_items
    assert len(store.item_titles() or []) == num_items + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_users": 9}, "users 9: give 10 or more"),
        ({"num_items": 239}, "items 239: too few for histories of 20 items on average; give 240 or more"),
        ({"mean_length": 9}, "mean_length 9: give 10 or more"),
        ({"seed": -1}, "seed -1: give 0 or more"),
    ],
)
def test_impossible_sizes_are_named(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(tmp_path / "store", **changes)
    assert list(tmp_path.iterdir()) == []


def recall_at_10(store: InteractionStore, scores: np.ndarray | None) -> float:
    """Mean recall of the test users under the strict protocol; item-item `scores`, or popularity if None."""
    sequences = histories(store)
    popular = np.bincount(
        np.concatenate([sequences[user] for user in store.users("train")]), minlength=store.num_item_rows
    ).astype(float)
    users = store.users("test")
    recalls = []
    for user, cut in zip(users, store.evaluation_window(users, "test")[0], strict=True):
        past, targets = sequences[user][:cut], sequences[user][cut:]
        score = popular.copy() if scores is None else scores[past[-10:]].sum(axis=0)
        score[past] = score[0] = -np.inf
        recalls.append(np.isin(np.argsort(-score, kind="stable")[:10], targets).sum() / len(targets))
    return float(np.mean(recalls))


def co_occurrence(store: InteractionStore) -> np.ndarray:
    counts = np.zeros((store.num_item_rows, store.num_item_rows))
    sequences = histories(store)
    for user in store.users("train"):
        items = sequences[user]
        for distance in range(1, 11):
            np.add.at(counts, (items[distance:], items[:-distance]), 1)
    return counts + counts.T


def test_popularity_is_easily_beaten(tmp_path: Path) -> None:
    store = made(tmp_path / "store", num_users=4000, num_items=1000, mean_length=40)
    popularity, neighbours = recall_at_10(store, None), recall_at_10(store, co_occurrence(store))
    assert 0.02 < popularity < 0.08
    assert 0.15 < neighbours < 0.3


def test_command_lines(tmp_path: Path) -> None:
    app = typer.Typer(rich_markup_mode="markdown")
    app.command()(synth)
    app.command()(prepare)
    run = CliRunner().invoke
    out = str(tmp_path / "store")
    result = run(app, ["synth", "--users", "20", "--items", "130", "--mean-length", "10", "--out", out])
    assert result.exit_code == 0, result.output
    assert f"Wrote {out}" in result.output
    again = run(app, ["synth", "--users", "20", "--items", "130", "--mean-length", "10", "--out", out])
    assert isinstance(again.exception, UserError)

    source = tmp_path / "log.csv"
    lines = [f"{user},{(user + step) % 9}" for user in range(20) for step in range(6)]
    source.write_text("\n".join(["who,what", *lines]) + "\n")
    arguments = ["prepare", str(source), "--format", "csv", "--user-column", "who", "--item-column", "what"]
    result = run(app, [*arguments, "--out", out, "--force", "--name", "visits"])
    assert result.exit_code == 0, result.output
    assert "visits: csv log.csv" in result.output
    assert InteractionStore.open(out).name == "visits"
    for command in ("prepare", "synth"):
        shown = run(app, [command, "--help"])
        assert shown.exit_code == 0
        assert f"eupmim-dist {command}" in shown.output
