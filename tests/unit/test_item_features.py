"""What is known of items and users: from a table to a store, and from there into rows. Their gradients over ranks:
tests/distributed/test_features.py."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eupmim_dist import evaluate
from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.checkpoint.layout import resolve
from eupmim_dist.config.schema import Config
from eupmim_dist.convert import export_authors, export_vectors
from eupmim_dist.data.item_features import add_item_attributes
from eupmim_dist.data.manifest import ItemAttribute
from eupmim_dist.data.permute import permute_items
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError
from eupmim_dist.export.init_from import take_weights
from eupmim_dist.export.model_dir import consolidate
from eupmim_dist.models.features import standardised
from eupmim_dist.train.state import Assembled
from tests.runs import WORLD, config_of, start, train_in
from tests.stores import small_store
from tests.unit.test_store import dataset
from tests.unit.test_store_values import edit, put

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS = 30


def described(rows: list[dict[str, Any]], raw_items: list[str], **columns: Any) -> Dataset:
    data = dataset([5, 5, 5], [0, 1, 2], "given")
    data.raw_items = pl.Series(raw_items, dtype=pl.String)
    frame = pl.DataFrame(rows, schema={"item": pl.String, **dict.fromkeys(rows[0].keys() - {"item"}, pl.String)})
    add_item_attributes(data, frame, **columns)
    return data


TEXT = st.text("ab |9", max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    known=st.dictionaries(st.sampled_from("pqrstuv"), st.tuples(TEXT, TEXT), min_size=1),
    separator=st.none() | st.just("|"),
)
def test_values_are_those_of_plain_python(known: dict[str, tuple[str, str]], separator: str | None) -> None:
    rows = [{"item": raw, "one": one, "other": other} for raw, (one, other) in known.items()]
    items = list("pqrst")
    data = described(rows, items, attributes={"one": separator, "other": None})
    assert data.item_values is not None
    first = 0
    for attribute, column, cut in zip(data.item_attributes, (0, 1), (separator, None), strict=True):
        values = data.item_values[:, first : (first := first + attribute.columns)]
        for item, row in zip(items, values.tolist(), strict=True):
            given_text = known[item][column] if item in known else ""
            parts = [part.strip() for part in (given_text.split(cut) if cut else [given_text])]
            expected = list(dict.fromkeys(part for part in parts if part))
            assert [attribute.labels[value - 1] for value in row if value] == expected
            assert 0 not in row[: len(expected)]
        assert set(attribute.labels) == {attribute.labels[v - 1] for v in values.flatten() if v}


def test_numbers_and_what_is_missing() -> None:
    rows = [{"item": "a", "price": "1.5"}, {"item": "b", "price": ""}, {"item": "z", "price": "9"}]
    data = described(rows, ["a", "b", "c"], attributes={}, numbers=["price"])
    assert data.item_numbers is not None
    np.testing.assert_array_equal(data.item_numbers, np.array([[1.5], [np.nan], [np.nan]], np.float32))
    assert data.report["items_without_price"] == 2
    with pytest.raises(UserError, match=r"shop\.csv: price of item b is 'much', no finite number"):
        described([{"item": "b", "price": "much"}], ["b"], attributes={}, numbers=["price"], where="shop.csv")
    with pytest.raises(UserError, match=r"items: item a has two rows"):
        described([{"item": "a", "price": "1"}] * 2, ["a"], attributes={}, numbers=["price"])
    found = standardised(np.array([[9, 9], [1, 2], [3, 2], [np.nan, np.nan]], np.float32))
    np.testing.assert_allclose(found, [[0, 0], [-1, 0], [1, 0], [0, 0]])


def store(place: Path, dim: int = 8) -> InteractionStore:
    random = np.random.default_rng(3)
    values = np.where(random.random((ITEMS, 2)) < 0.6, random.integers(1, 4, (ITEMS, 2)), 0)
    return small_store(
        place,
        num_items=ITEMS,
        item_attributes=[ItemAttribute("colour", ("red", "green", "blue"), 2)],
        item_values=np.sort(values, axis=1)[:, ::-1].astype(np.int32),
        number_names=["price", "weight"],
        item_numbers=random.normal(size=(ITEMS, 2)).astype(np.float32),
        item_vectors=random.normal(size=(ITEMS, dim)).astype(np.float32),
        user_vectors=random.normal(size=(40, dim)).astype(np.float32),
    )


def test_a_store_keeps_them_and_a_new_numbering_takes_them_along(tmp_path: Path) -> None:
    found = store(tmp_path / "store")
    assert found.item_values is not None
    assert not found.item_values[0].any()
    [(attribute, values)] = found.values_of_items()
    assert (attribute.name, values.shape) == ("colour", (ITEMS + 1, 2))
    plain = small_store(tmp_path / "plain", num_items=ITEMS)
    assert (found.items == plain.items).all()
    assert found.fingerprint != plain.fingerprint
    data = dataset([5, 5, 5], [0, 1, 2], "given")
    data.raw_items, data.items = pl.Series(["a", "b", "c"]), np.ones(15, np.int64)
    data.item_numbers = np.array([[1.0], [2.0], [3.0]], np.float32)
    permute_items(data, 1)
    assert [" abc".index(raw) for raw in data.raw_items] == data.item_numbers[:, 0].tolist()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("item_values.npy", put(3, 1, value=4), r"item_values\.npy: holds colour 4 at 3, where there are 0 to 3"),
        ("item_vectors.npy", put(5, 0, value=np.inf), r"item_vectors\.npy: .* not finite, in row 5"),  # type: ignore[arg-type]
        ("item_numbers.npy", put(2, 0, value=np.inf), r"item_numbers\.npy: .* not finite, in row 2"),  # type: ignore[arg-type]
        ("item_values.npy", lambda values: values[:, :1].copy(), r"item_values\.npy: is int32 \(31, 1\), expected"),
        ("user_vectors.npy", lambda values: values[1:].copy(), r"user_vectors\.npy: is float32 \(39, 8\), expected"),
    ],
)
def test_damage_is_found(tmp_path: Path, name: str, value: Any, message: str) -> None:
    store(tmp_path / "store")
    edit(tmp_path / "store", name, value)
    with pytest.raises(UserError, match=message):
        InteractionStore.open(tmp_path / "store")


def settings_of(tmp_path: Path, **model: Any) -> Config:
    if not (tmp_path / "store").exists():
        store(tmp_path / "store")
    return config_of(tmp_path, **{f"model__{key}": value for key, value in model.items()})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"item_attributes": "size"}, r"knows no 'size' of its items; there are colour, price, weight"),
        (
            {"item_vectors": "frozen", "dim": 4},
            r"item_vectors: frozen vectors are the rows.* have 8 numbers where .* 4",
        ),
        ({"name": "sasrec", "dim": 8, "user_vectors": "projected"}, "has no table of users"),
        ({"user_vectors": "projected"}, r"set model\.unseen_users=table too"),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    config = settings_of(tmp_path)
    values = model if "name" in model else {**config.model.model_dump(), **model}
    with pytest.raises(UserError, match=message):
        start(Config(**{**config.model_dump(), "model": values}))


def test_a_plain_store_has_none(tmp_path: Path) -> None:
    for key in ("item_attributes", "item_vectors"):
        value = ["colour"] if key == "item_attributes" else "projected"
        with pytest.raises(UserError, match=rf"model\.{key}: .*prepare it with (--)?item"):
            start(config_of(tmp_path, **{f"model__{key}": value}))


def test_a_row_is_what_the_formula_says(tmp_path: Path) -> None:
    run = start(
        settings_of(
            tmp_path, item_attributes="all", item_vectors="projected", user_vectors="projected", unseen_users="table"
        )
    )
    held = {
        name: dict(zip(shard.ids().tolist(), shard.weight, strict=True)) for name, shard in run.tables.shards.items()
    }
    found = run.tables.lookup({"a": ("item", torch.arange(1, ITEMS + 1)), "b": ("user", torch.arange(40))}).rows[0]
    [(_, colours)] = run.store.values_of_items()
    assert run.store.item_numbers is not None
    numbers = standardised(np.asarray(run.store.item_numbers))
    for item in range(1, ITEMS + 1):
        expected = held["item"][item].clone()
        if values := [value for value in colours[item].tolist() if value]:
            expected += sum(held["item:colour"][value] for value in values) / len(values)
        expected += sum(float(number) * held["item:numbers"][n] for n, number in enumerate(numbers[item]))
        assert run.store.item_vectors is not None
        expected += sum(float(v) * held["item:vectors"][n] for n, v in enumerate(run.store.item_vectors[item]))
        torch.testing.assert_close(found["a"][item - 1], expected, rtol=1e-5, atol=1e-6)
    assert run.store.user_vectors is not None
    own = torch.stack([held["user"][user] for user in range(40)])
    projection = torch.stack([held["user:vectors"][n] for n in range(8)])
    torch.testing.assert_close(
        found["b"], own + torch.tensor(run.store.user_vectors) @ projection, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("optimizer", ["exact", "lazy_adam"])
def test_frozen_rows_stay_and_finetuned_ones_move(tmp_path: Path, optimizer: str) -> None:
    for use in ("frozen", "finetuned"):
        config = settings_of(tmp_path, item_vectors=use, item_attributes="colour")
        config = Config(**{**config.model_dump(), "tables": {"optimizer": optimizer}})
        vectors = torch.tensor(np.asarray(InteractionStore.open(tmp_path / "store").item_vectors))
        run = start(config)
        shard = run.tables.shards["item"]
        assert torch.equal(shard.weight[shard.ids().argsort()][1:], vectors[1:])
        trained = train_in(config, tmp_path / f"{use}-{optimizer}")
        shard = trained.tables.shards["item"]
        same = torch.equal(shard.weight[shard.ids().argsort()][1:], vectors[1:])
        assert same == (use == "frozen")
        moved = trained.tables.shards["item:colour"].weight != run.tables.shards["item:colour"].weight
        assert moved.any()


def test_fine_tuning_takes_values_by_label_and_numbers_by_name(tmp_path: Path) -> None:
    config = settings_of(tmp_path, item_attributes="all", item_vectors="projected")
    trained = train_in(config, tmp_path / "run")
    consolidate(resolve(tmp_path / "run", "last"), tmp_path / "model")
    random = np.random.default_rng(4)
    known: dict[str, Any] = {
        "item_attributes": [ItemAttribute("colour", ("blue", "pink", "red"), 1)],
        "item_values": random.integers(0, 4, (ITEMS, 1)).astype(np.int32),
        "number_names": ["weight", "age", "price"],
        "item_numbers": random.normal(size=(ITEMS, 3)).astype(np.float32),
        "item_vectors": random.normal(size=(ITEMS, 8)).astype(np.float32),
    }
    (tmp_path / "later").mkdir()
    small_store(tmp_path / "later" / "store", num_items=ITEMS, **known)
    later = config_of(tmp_path / "later", model__item_attributes="all", model__item_vectors="projected")
    fresh = start(later)
    told: list[str] = []

    def take(run: Assembled) -> None:
        told.extend(take_weights(run, resolve(tmp_path / "model")))

    begun = assemble_run(later, WORLD, fresh.store, take)
    rows = {
        place: {name: dict(zip(s.ids().tolist(), s.weight, strict=True)) for name, s in run.tables.shards.items()}
        for place, run in (("there", trained), ("here", begun), ("fresh", fresh))
    }
    for name, here, there in (
        ("item:colour", 0, 0),  # no value
        ("item:colour", 1, 3),
        ("item:colour", 3, 1),
        ("item:numbers", 0, 1),
        ("item:numbers", 2, 0),
        *(("item:vectors", n, n) for n in range(8)),
    ):
        assert torch.equal(rows["here"][name][here], rows["there"][name][there]), (name, here)
    for name, new in (("item:colour", 2), ("item:numbers", 1)):
        assert torch.equal(rows["here"][name][new], rows["fresh"][name][new])
    assert any("item:colour: 2 of 3 rows taken" in line for line in told)
    shutil.rmtree(tmp_path / "later")
    (tmp_path / "later").mkdir()
    small_store(
        tmp_path / "later" / "store", num_items=ITEMS, **{**known, "item_vectors": known["item_vectors"][:, :5]}
    )
    with pytest.raises(UserError, match=r"its item vectors have 8 numbers and those of .* 5"):
        assemble_run(later, WORLD, open_store(later.data.dir, WORLD), take)


def test_fine_tuning_on_the_same_store(tmp_path: Path) -> None:
    """Which numbers have a row is the configuration's matter; and what is frozen stays as the store has it."""
    place = tmp_path / "run"
    trained = train_in(settings_of(tmp_path, item_attributes="weight", item_vectors="finetuned"), place)
    told: list[str] = []

    def take(run: Assembled) -> None:
        told.extend(take_weights(run, resolve(place, "last")))

    config = settings_of(tmp_path, item_attributes=["weight", "price", "colour"], item_vectors="frozen")
    run = assemble_run(config, WORLD, trained.store, take)
    rows = {name: dict(zip(s.ids().tolist(), s.weight, strict=True)) for name, s in run.tables.shards.items()}
    source = trained.tables.shards["item:numbers"].weight
    assert torch.equal(rows["item:numbers"][1], source[0])  # weight comes after price
    assert not torch.equal(rows["item:numbers"][0], source[0])
    assert trained.store.item_vectors is not None
    for item in range(1, ITEMS + 1):
        assert torch.equal(rows["item"][item], torch.tensor(trained.store.item_vectors[item]))
    assert any("items: rows are frozen" in line for line in told)
    assert "item:colour: new" in told
    told.clear()
    assemble_run(settings_of(tmp_path, item_vectors="finetuned"), WORLD, trained.store, take)
    assert f"item:numbers of {resolve(place, 'last').path} dropped" in told


def test_a_store_that_knows_more_of_its_items_is_the_same_for_what_was_trained_before(tmp_path: Path) -> None:
    plain = small_store(tmp_path / "store", num_items=ITEMS)
    config = config_of(tmp_path)
    train_in(config, tmp_path / "run")
    before = evaluate(tmp_path / "run", top_n=5, cpu=True)[0].metrics
    shutil.move(tmp_path / "store", tmp_path / "plain")
    told_more = store(tmp_path / "store")
    assert told_more.fingerprint != plain.fingerprint == told_more.manifest.bare_fingerprint
    assert evaluate(tmp_path / "run", top_n=5, cpu=True)[0].metrics == before
    trained = train_in(settings_of(tmp_path, item_attributes="all"), tmp_path / "knowing")
    assert not plain.is_that_of(trained.store.fingerprint)
    with pytest.raises(UserError, match=r"plain: is another store than"):
        evaluate(tmp_path / "knowing", top_n=5, data=tmp_path / "plain", cpu=True)


def test_vectors_are_exported_with_what_features_add(tmp_path: Path) -> None:
    config = settings_of(tmp_path, item_attributes="all")
    run = train_in(config, tmp_path / "run")
    export_vectors(resolve(tmp_path / "run", "last"), tmp_path / "out", ["items"])
    expected = run.tables.lookup({"a": ("item", torch.arange(1, ITEMS + 1))}).rows[0]["a"]
    torch.testing.assert_close(torch.tensor(np.load(tmp_path / "out" / "items.npy")), expected.detach())
    with pytest.raises(UserError, match="has the table item:colour, and the authors' model has none such"):
        export_authors(resolve(tmp_path / "run"), tmp_path / "authors")


def test_a_run_with_features_goes_on_bit_for_bit_and_is_consolidated(tmp_path: Path) -> None:
    changes = {"item_attributes": "all", "item_vectors": "projected"}
    config = settings_of(tmp_path, **changes)
    short = Config(**{**config.model_dump(), "train": {**config.train.model_dump(), "max_steps": 6}})
    whole = train_in(config, tmp_path / "whole")
    train_in(short, tmp_path / "parts")
    parts = train_in(config, tmp_path / "parts")
    for name, shard in whole.tables.shards.items():
        assert torch.equal(shard.weight, parts.tables.shards[name].weight), name
    consolidate(resolve(tmp_path / "parts"), tmp_path / "model")
    assert math.isfinite(float(whole.tables.shards["item:numbers"].weight.sum()))
