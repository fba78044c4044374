"""Each finding of an audit on stores whose figures are known: counted by hand, or by plain loops."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from eupmim_dist import UserError, audit, prepare
from eupmim_dist.auditing import id_rules, reading
from eupmim_dist.auditing.id_rules import judged, rank_correlation
from eupmim_dist.cli.app import app
from eupmim_dist.convert import import_release
from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.writer import Dataset, write_dataset
from tests.stores import small_store

TRAIN, VALID, TEST, NONE = 0, 1, 2, 255


def made(
    directory: Path,
    sequences: Sequence[Sequence[int]],
    split: Sequence[int],
    *,
    split_rule: str = "given",
    num_items: int | None = None,
    times: Sequence[Sequence[int]] | None = None,
    users: Sequence[str] | None = None,
    items: Sequence[str] | None = None,
    attributes: Sequence[Attribute] = (),
    values: Sequence[Sequence[int]] | None = None,
) -> InteractionStore:
    """A store of these sequences, one a user."""
    count = num_items or max(max(sequence, default=1) for sequence in sequences)
    dataset = Dataset(
        offsets=np.cumsum([0, *map(len, sequences)]),
        items=np.concatenate([np.array(sequence, np.int64) for sequence in sequences]),
        timestamps=None if times is None else np.concatenate([np.array(of_user, np.int64) for of_user in times]),
        attributes=attributes,
        attribute_values=np.array(values or np.zeros((len(sequences), 0)), np.int32),
        split=np.array(split),
        split_rule=split_rule,
        raw_users=pl.Series(users or [f"u{number}" for number in range(len(sequences))]),
        raw_items=pl.Series(items or [f"i{number}" for number in range(1, count + 1)]),
    )
    write_dataset(dataset, directory, name="made", source="test")
    return InteractionStore.open(directory)


def plain_recalls(store: InteractionStore, split: str) -> dict[str, float]:
    """Strict recall@10 of the rules, by ranking every candidate of every user."""
    train = np.zeros(store.num_item_rows, int)
    for user in range(store.num_users):
        first, length = store.offsets[user], store.train_lengths(np.array([user]))[0]
        for item in store.items[first : first + length]:
            train[item] += 1
    recalls: dict[str, list[float]] = {}
    for user in store.users(split):
        sequence = store.items[store.offsets[user] : store.offsets[user + 1]].tolist()
        [cut], [end] = store.evaluation_window(np.array([user]), split)
        history, targets = sequence[:cut], set(sequence[cut:end])
        last = history[-1]
        taken = max([*store.items[: store.offsets[user]], *history])
        unseen = [item for item in range(1, store.num_item_rows) if item not in history]
        lists = {
            "popularity": sorted(unseen, key=lambda item: (-train[item], item)),
            "next_ids": sorted(unseen, key=lambda item: (item <= last, item)),
            "nearest_ids": sorted(unseen, key=lambda item: (abs(item - last), item)),
            "new_ids": [item for item in unseen if item > taken],
            "smallest_ids": unseen,
            "largest_ids": unseen[::-1],
        }
        for rule, ranked in lists.items():
            recalls.setdefault(rule, []).append(len(targets & set(ranked[:10])) / len(targets))
        possible = len(targets & set(unseen)) / len(targets)
        recalls.setdefault("chance", []).append(possible * min(1, 10 / len(unseen)))
    return {rule: float(np.mean(of_users)) for rule, of_users in recalls.items()}


@pytest.mark.parametrize(("rule", "split"), [("by_user", "test"), ("leave_one_out", "valid")])
def test_rules_on_ids_reach_what_plain_lists_reach(tmp_path: Path, rule: str, split: str) -> None:
    random = small_store(tmp_path / "random", num_items=60, longest=30, split_rule=rule)
    generator = np.random.default_rng(3)
    with_repeats = [np.minimum(generator.geometric(0.05, generator.integers(5, 30)), 60).tolist() for _ in range(40)]
    code = [TRAIN] * 24 + [VALID] * 8 + [TEST] * 8
    skewed = made(tmp_path / "skewed", with_repeats, code, split_rule=rule, num_items=70)
    for store in (random, skewed):
        found = audit(store, split=split)
        for name, recall in plain_recalls(store, split).items():
            assert found[name].value == pytest.approx(recall, abs=1e-12), name


def test_ids_by_first_appearance_leak_and_permuted_ones_do_not(tmp_path: Path) -> None:
    source = tmp_path / "sequences"
    source.mkdir()
    lines = [f"{user} {' '.join(str(8 * (user - 1) + place) for place in range(1, 9))}" for user in range(1, 121)]
    (source / "sequential.txt").write_text("\n".join(lines) + "\n")
    leaky = audit(prepare(source, tmp_path / "leaky", format="sequential"))
    assert {leaky[rule].value for rule in ("next_ids", "new_ids", "first_seen_order")} == {1.0}
    assert {leaky[rule].verdict for rule in ("next_ids", "nearest_ids", "new_ids", "first_seen_order")} == {"bad"}
    assert leaky["first_seen_order"].details == {"targets_that_open_an_id": 1.0}
    assert "--permute-items" in leaky["next_ids"].meaning
    store = prepare(source, tmp_path / "permuted", format="sequential", permute_items=1)
    permuted = audit(store)
    assert {permuted[rule].verdict for rule in ("next_ids", "nearest_ids", "new_ids", "first_seen_order")} == {"ok"}
    assert permuted["first_seen_order"].value == pytest.approx(0.5, abs=0.1)
    assert store.manifest.report["item_ids_permuted_by_seed"] == 1
    assert store.raw_item_ids(store.items[:8]) == [str(item) for item in range(1, 9)], "only the numbers are others"


def test_permuting_moves_titles_too_and_is_the_same_for_frames(tmp_path: Path) -> None:
    log = pl.DataFrame({"user": np.repeat(np.arange(20), 6), "item": np.arange(120) % 17})
    log = log.with_columns(title=pl.format("title of {}", "item"))
    columns = {"user_column": "user", "item_column": "item", "title_column": "title", "min_count": 1}
    log.write_csv(tmp_path / "log.csv")
    frame = prepare(log, tmp_path / "frame", **columns, permute_items=np.int64(5))
    file = prepare(tmp_path / "log.csv", tmp_path / "file", format="csv", **columns, permute_items=5)
    assert frame.fingerprint == file.fingerprint != prepare(log, tmp_path / "other", **columns).fingerprint
    titles = frame.item_titles()
    assert titles is not None
    assert titles[1:] == [f"title of {raw}" for raw in frame.raw_item_ids(np.arange(1, 18))]
    for wrong in (-1, True, "1", 2**63):
        with pytest.raises(UserError, match=r"^permute_items .*: give a seed from 0"):
            prepare(log, tmp_path / "wrong", **columns, permute_items=wrong)
    assert not (tmp_path / "wrong").exists()


def test_a_release_is_not_read_for_permuted_ids(shared_data: Path, tmp_path: Path) -> None:
    log = {"user": np.repeat(np.arange(20), 6), "item": np.arange(120) % 17}
    prepare(log, tmp_path / "store", user_column="user", item_column="item", permute_items=1)
    with pytest.raises(UserError, match=r"item ids are permuted"):
        import_release(shared_data / "checkpoints/eupmim_movielens.pt", tmp_path / "store", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_a_recall_says() -> None:
    sure, lucky = np.repeat([1.0, 0.0], [300, 700]), np.repeat([1.0, 0.0], [1, 9])
    assert judged(sure, chance=0.01, popularity=0.1)[0] == "bad"
    assert judged(sure, chance=0.01, popularity=0.3)[0] == "look"
    assert judged(sure, chance=0.15, popularity=0.1)[0] == "ok"
    assert judged(lucky, chance=0.01, popularity=0.01)[0] == "ok"


def test_rank_correlation() -> None:
    ids = np.arange(1, 6)
    assert rank_correlation(ids, np.array([50, 40, 30, 20, 1])) == pytest.approx(-1)
    assert rank_correlation(ids, np.array([1, 1, 2, 2, 2])) == pytest.approx(0.8660254)  # by hand, mean ranks of ties
    assert rank_correlation(ids, np.full(5, 7)) == 0


def test_what_splits_share(tmp_path: Path) -> None:
    twin, own = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11, 12, 13, 6, 14]  # cut after 8: targets 6 (had) and 14 (cold)
    store = made(
        tmp_path / "store",
        [twin, twin, [3, 2, 1, 4, 5], [7, 6, 8, 9, 2], twin, own, []],
        [TRAIN, TRAIN, TRAIN, VALID, TEST, TEST, NONE],
        users=["Ann", "bob", "cy", " ann", "eve", "ANN ", "ann"],
        items=[*map(str, range(1, 13)), "x", "X"],
    )
    found = audit(store)
    assert (found["identical_histories"].value, found["identical_histories"].verdict) == (3, "bad")
    assert (found["identical_across_splits"].value, found["identical_across_splits"].verdict) == (1, "bad")
    assert found["repeated_targets"].value == pytest.approx(1 / 3)
    assert found["cold_targets"].value == pytest.approx(2 / 3)  # 5 of eve is known
    assert (found["held_out_users"].value, found["held_out_users"].verdict) == (2, "look")
    same = found["same_users"]
    assert (same.value, same.details, same.verdict) == (3, {"in_several_splits": 3}, "bad")
    assert (found["same_items"].value, found["same_items"].verdict) == (2, "look")
    assert audit(store, split="valid")["held_out_users"].details == {"targets": 1}


def test_what_timestamps_tell(tmp_path: Path) -> None:
    store = made(
        tmp_path / "store",
        [[1, 2, 3, 4, 5], [2, 1, 3, 9, 10], [6, 7, 8, 1, 9], [1, 2, 3, 4, 10]],
        [TRAIN, TRAIN, TEST, TEST],
        times=[[100, 100, 100, 200, 300], [110, 120, 130, 500, 600], [10, 20, 30, 400, 400], [1, 2, 3, 4, 700]],
    )
    found = audit(store)
    ties = found["tied_pairs"]
    assert ties.value == pytest.approx(3 / 16)
    assert ties.details == {"ties": 3, "longest_run": 3, "users": 2}
    assert found["tied_cuts"].value == 0.5  # of the third user
    assert (found["tie_order"].value, found["tie_order"].verdict) == (1.0, "ok")  # three ties may be chance
    # Targets at 400 and 700; of ten training interactions none is later than 550 but that at 600.
    assert found["training_after_targets"].value == pytest.approx(0.1)
    assert found["training_after_targets"].details["targets_before_training_ends"] == 0.5
    assert found["targets_known_later"].value == 0.5  # item 9 at 400, which training has at 500
    assert found["timestamps"].details == {"first": 1, "last": 700}


def test_ties_in_the_order_of_ids_and_odd_times(tmp_path: Path) -> None:
    rising = [list(range(1, 21))] * 10
    split = [TRAIN] * 8 + [VALID, TEST]
    ordered = audit(made(tmp_path / "ordered", rising, split, times=[[1_000_000_000] * 20] * 10))
    assert ordered["tie_order"].verdict == ordered["tied_pairs"].verdict == ordered["tied_cuts"].verdict == "bad"
    assert ordered["timestamps"].verdict == "bad"  # all the same
    mixed = audit(made(tmp_path / "mixed", rising, split, times=[list(range(0, 20 * 10**9, 10**9))] * 10))
    assert mixed["timestamps"].verdict == "look"
    days = [[1_600_000_000_000 + 86_400_000 * day for day in range(20)]] * 10
    dated = audit(made(tmp_path / "dated", rising, split, times=days))
    assert dated["timestamps"].meaning == "2020-09-13 to 2020-10-02"
    assert dated["tied_pairs"].value == 0


def test_the_shape_of_the_data(tmp_path: Path) -> None:
    store = made(
        tmp_path / "store",
        [[1, 1, 1, 2, 1], [1, 2, 3, 1, 4], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], []],
        [TRAIN, TRAIN, TEST, NONE],
        num_items=11,
    )
    found = audit(store)
    # Counts by item: 7, 3, 2, 2 and six times 1, of item 11 none: 20 interactions of 4 x 11 pairs.
    assert (found["users"].value, found["users"].details, found["users"].verdict) == (4, {"in_no_split": 1}, "look")
    assert (found["items"].value, found["items"].details) == (11, {"without_interactions": 1})
    assert found["interactions"].details["density"] == pytest.approx(20 / 44)
    assert found["median_length"].value == 5
    counts = [7, 3, 2, 2, 1, 1, 1, 1, 1, 1, 0]
    differences = sum(abs(one - other) for one in counts for other in counts)
    assert found["gini"].value == pytest.approx(differences / (2 * 11 * 20))
    assert found["top_items"].value == pytest.approx(7 / 20)
    assert found["items_per_tenth"].details["items_per_tenth"] == [1, 0, 0, 1, 0, 1, 1, 2, 2, 2]
    assert (found["untrained_items"].value, found["rare_items"].value) == (7, 10)
    assert found["same_item_in_a_row"].value == pytest.approx(2 / 17)
    assert found["repeats"].value == pytest.approx(4 / 20)


def test_attributes(tmp_path: Path) -> None:
    attributes = [
        Attribute("plan", 3, ("free", "N/A", "paid")),
        Attribute("code", 50),
        Attribute("name", 10),
        Attribute("country", 1),
    ]
    values = [[number % 2, 7 * (number % 2), number, 0] for number in range(10)]
    sequences = [[1, 2, 3, 4, 5]] * 10
    split = [TRAIN] * 8 + [VALID, TEST]
    found = audit(made(tmp_path / "store", sequences, split, attributes=attributes, values=values))
    assert (found["values:plan"].value, found["values:plan"].details["entropy_bits"]) == (2, 1.0)
    assert (found["missing:plan"].value, found["missing:plan"].verdict) == (0.5, "bad")
    assert (found["values:code"].value, found["values:code"].verdict) == (2, "look")
    assert (found["values:name"].verdict, found["values:country"].verdict) == ("bad", "look")
    assert (found["profiles"].value, found["profiles"].verdict) == (10, "bad")


def test_edges_of_training_among_the_targets(tmp_path: Path) -> None:
    sequences = [[1, 2, 3, 4, 1], [1, 2, 3, 4, 4], [1, 2, 3, 4, 5], [2, 2, 2, 2, 2]]
    store = made(tmp_path / "store", sequences, [TRAIN] * 4, split_rule="leave_one_out")
    found = audit(store)
    # 4 of the second user is the item of valid: he had it before, but training has not.
    assert found["edges_of_training"].value == pytest.approx(2 / 4)
    assert found["repeated_targets"].value == pytest.approx(3 / 4)
    assert (found["edges_of_all"].value, found["edges_of_training"].verdict) == (1.0, "bad")


def test_blocks_and_drawn_users_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    sequences = [generator.integers(1, 40, generator.integers(0, 25)).tolist() for _ in range(60)]
    split = [NONE if not sequence else (TRAIN, TRAIN, VALID, TEST)[i % 4] for i, sequence in enumerate(sequences)]
    times = [np.sort(generator.integers(0, 30, len(sequence))).tolist() for sequence in sequences]
    store = made(tmp_path / "store", sequences, split, times=times)
    whole = audit(store)
    monkeypatch.setattr(reading, "BLOCK", 50)
    assert audit(store).as_dict() == whole.as_dict()
    monkeypatch.setattr(id_rules, "MOST_USERS", 5)
    drawn = audit(store)
    assert drawn["chance"].details == {"users": 5}
    assert "5 of " in drawn.groups[0].title
    assert drawn["repeats"] == whole["repeats"]


def test_a_split_without_users_is_bad_and_no_error(tmp_path: Path) -> None:
    store = made(tmp_path / "store", [[1, 2, 3, 4, 5]], [TRAIN], times=[[1, 2, 3, 4, 5]])
    found = audit(store)
    assert found["held_out_users"].verdict == "bad"
    assert "next_ids" not in found.frame()["key"]
    with pytest.raises(UserError, match=r"^split train: choose valid or test"):
        audit(store, split="train")


def test_the_command_shows_all_and_writes_json(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    run = CliRunner().invoke
    shown = run(app, ["audit", str(store.path), "--json", str(tmp_path / "audit.json")])
    assert shown.exit_code == 0
    found = audit(store.path)
    frame = found.frame()
    assert all(what in shown.output for what in frame["what"])
    written = json.loads((tmp_path / "audit.json").read_text())
    assert written == json.loads(json.dumps(found.as_dict()))
    assert written["verdicts"] == {verdict: (frame["verdict"] == verdict).sum() for verdict in ("ok", "look", "bad")}
    assert "random items" in repr(found)
    assert "random items" in found._repr_html_()
