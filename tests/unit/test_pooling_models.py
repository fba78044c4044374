"""MIND, ComiRec-SA and the YouTube DNN against plain second implementations (tests/oracles/pooling_plain.py)."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from eupmim_dist.config.registry import find
from eupmim_dist.data.batch import NO_ROW, UserBatch, last_position
from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import DataShape, Encoded, Model, TableSpec, item_table
from tests.oracles.pooling_plain import plain_comirec_sa, plain_mind, plain_youtube_dnn
from tests.oracles.tables_plain import PlainTable

LENGTH, DIM = 9, 6
SHAPE = DataShape(num_users=50, num_item_rows=23, attributes={"age": 3, "gender": 2}, history_length=LENGTH)
CASES = [
    {"name": "mind"},
    {"name": "mind", "num_interests": 1},
    {"name": "mind", "attributes": True},
    {"name": "mind", "dynamic_interests": True},
    {"name": "mind", "dynamic_interests": True, "num_interests": 2},
    {"name": "comirec_sa"},
    {"name": "comirec_sa", "num_interests": 1},
    {"name": "youtube_dnn"},
    {"name": "youtube_dnn", "hidden": []},
    {"name": "youtube_dnn", "hidden": [16, 8], "attributes": True},
]


def name_of(case: dict[str, Any]) -> str:
    return "-".join([case["name"], *(f"{key}={value}" for key, value in case.items() if key != "name")])


every_case = pytest.mark.parametrize("case", CASES, ids=name_of)


def build(case: dict[str, Any], seed: int = 0) -> Model:
    """In float64, and with weights large enough for every nonlinearity to matter."""
    torch.manual_seed(seed)
    registered = find("model", case["name"])
    model: Model = registered.build(registered.config.model_validate({"dim": DIM, **case}), SHAPE).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)
    return model


def ragged_batch(lengths: list[int]) -> UserBatch:
    generator = torch.Generator().manual_seed(len(lengths))
    num = len(lengths)
    history = torch.randint(1, SHAPE.num_item_rows, (num, LENGTH), generator=generator)
    history = torch.where(torch.arange(LENGTH) < torch.tensor(lengths).view(num, 1), history, NO_ROW)
    columns = [torch.randint(rows, (num,), generator=generator) for rows in SHAPE.attributes.values()]
    return UserBatch(num, num, torch.arange(num), torch.stack(columns, 1), history, last_position(history))


def item_rows() -> PlainTable:
    return PlainTable(torch.randn(SHAPE.num_item_rows, DIM, generator=torch.Generator().manual_seed(7)))


def encode(model: Model, table: PlainTable, batch: UserBatch) -> Encoded:
    assert table.weight.requires_grad
    return model({"history": table.rows(batch.history)}, batch)


def plain(case: dict[str, Any], weights: dict[str, Tensor], items: Tensor, batch: UserBatch) -> Encoded:
    """The oracle's queries [B, K, D], and the attention [B, K, L] where there is one."""
    queries, routing = [], []
    for ids, values in zip(batch.history.tolist(), batch.attributes.tolist(), strict=True):
        history = [item for item in ids if item != NO_ROW]
        if case["name"] == "mind":
            queries.append(plain_mind(weights, items, history, values, dynamic=case.get("dynamic_interests", False)))
        elif case["name"] == "youtube_dnn":
            queries.append(plain_youtube_dnn(weights, items, history, values))
        else:
            found, attention = plain_comirec_sa(weights, items, history)
            queries.append(found)
            routing.append(torch.cat([attention, attention.new_zeros(len(attention), LENGTH - len(history))], dim=1))
    return Encoded(torch.stack(queries), routing=torch.stack(routing) if routing else None)


def scalar(encoded: Encoded) -> Tensor:
    """A number that depends on every element in its own way."""
    total = encoded.queries.new_zeros(())
    for part in (encoded.queries, encoded.routing):
        if part is not None:
            total = total + (part * torch.arange(1, part.numel() + 1).view(part.shape).to(part.dtype).cos()).sum()
    return total


def gradients(out: Tensor, model: Model, table: PlainTable) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    return dict(zip([*names, "items"], torch.autograd.grad(out, [*model.parameters(), table.weight]), strict=True))


@every_case
def test_queries_and_gradients_are_the_oracles(case: dict[str, Any]) -> None:
    model, table, batch = build(case), item_rows(), ragged_batch([9, 1, 2, 3, 4, 5, 6, 7, 8, 1, 9])
    ours = encode(model, table, batch)
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    theirs = plain(case, {**weights, **dict(model.named_buffers())}, table.weight, batch)
    assert ours.queries.shape == (11, model.num_interests, model.dim)
    assert not ours.penalties
    torch.testing.assert_close(ours.queries, theirs.queries, rtol=1e-11, atol=1e-12)
    if theirs.routing is None:
        assert ours.routing is None
    else:
        torch.testing.assert_close(ours.routing, theirs.routing, rtol=1e-11, atol=1e-12)
    expected = torch.autograd.grad(scalar(theirs), [*weights.values(), table.weight])
    for (name, found), other in zip(gradients(scalar(ours), model, table).items(), expected, strict=True):
        assert other.abs().max() > 1e-3, f"{name}: nothing to compare"
        torch.testing.assert_close(found, other, rtol=1e-10, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@every_case
def test_padded_rows_change_nothing(case: dict[str, Any]) -> None:
    model, table, batch = build(case), item_rows(), ragged_batch([1, 4, 0, 9, 8])
    clean = table.rows(batch.history).detach()
    padding = (batch.history == NO_ROW)[..., None]
    results = []
    for rows in (clean, torch.where(padding, 1e6, clean)):
        rows.requires_grad_()
        encoded = model({"history": rows}, batch)
        results.append([encoded.queries, *torch.autograd.grad(scalar(encoded), [rows, *model.parameters()])])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)
    assert not results[1][1][padding.expand_as(clean)].any()


@every_case
def test_a_history_that_is_all_padding_gives_zeros_and_no_gradient(case: dict[str, Any]) -> None:
    model, table = build(case), item_rows()
    empty, mixed = ragged_batch([0, 0]), ragged_batch([3, 0, 5])
    encoded = encode(model, table, empty)
    assert encoded.queries.shape == (2, model.num_interests, DIM)
    assert not encoded.queries.any()
    assert encoded.routing is None or not encoded.routing.any()
    assert all(not gradient.any() for gradient in gradients(scalar(encoded), model, table).values())

    queries = encode(model, table, mixed).queries
    others = [encode(model, table, mixed.micro_batch(index, 3)).queries for index in (0, 2)]
    torch.testing.assert_close(queries[[0, 2]], torch.cat(others), rtol=1e-12, atol=1e-12)
    assert all(gradient.isfinite().all() for gradient in gradients(queries.sum(), model, table).values())


@every_case
def test_no_samples(case: dict[str, Any]) -> None:
    model, table, batch = build(case), item_rows(), ragged_batch([])
    encoded = encode(model, table, batch)
    assert encoded.queries.shape == (0, model.num_interests, DIM)
    found = gradients(scalar(encoded), model, table)  # DDP waits for every parameter's
    assert all(not gradient.any() for gradient in found.values())


@every_case
@pytest.mark.parametrize("number", [2, 5, 9])
def test_queries_do_not_depend_on_how_a_batch_is_cut(case: dict[str, Any], number: int) -> None:
    model, table, batch = build(case), item_rows(), ragged_batch([9, 1, 4, 8, 2, 5, 3])
    whole = encode(model, table, batch)
    parts = [encode(model, table, batch.micro_batch(index, number)) for index in range(number)]
    torch.testing.assert_close(torch.cat([part.queries for part in parts]), whole.queries, rtol=1e-12, atol=1e-12)
    if whole.routing is not None:
        torch.testing.assert_close(torch.cat([part.routing for part in parts]), whole.routing, rtol=1e-12, atol=1e-12)


@every_case
def test_what_is_looked_up(case: dict[str, Any]) -> None:
    model, batch = build(case), ragged_batch([2, 3])
    specs: list[TableSpec] = model.tables()
    assert specs == [item_table(SHAPE, DIM)]
    [(use, (table, ids))] = model.uses(batch).items()
    assert (use, table) == ("history", "item")
    assert ids is batch.history


@every_case
def test_attributes_count_where_they_are_asked_for(case: dict[str, Any]) -> None:
    model, table, batch = build(case), item_rows(), ragged_batch([4, 4])
    parameters = dict(model.named_parameters())
    shapes = {name: list(parameters[weight].shape) for name, weight in model.attribute_weights().items()}
    asked = case.get("attributes", False)
    assert shapes == ({name: [rows, DIM] for name, rows in SHAPE.attributes.items()} if asked else {})
    before = encode(model, table, batch).queries
    for weight in model.attribute_weights().values():
        with torch.no_grad():
            parameters[weight][:] += 1.0
        after = encode(model, table, batch).queries
        assert not torch.allclose(before, after), weight
        before = after


@pytest.mark.parametrize("name", ["mind", "youtube_dnn"])
def test_attributes_that_the_data_has_not_are_refused(name: str) -> None:
    registered = find("model", name)
    shape = DataShape(num_users=5, num_item_rows=7, attributes={}, history_length=3)
    with pytest.raises(UserError, match=r"model\.attributes: .*set it to false"):
        registered.build(registered.config(attributes=True), shape)


def test_minds_first_logits_are_no_weights_and_the_same_for_every_seed() -> None:
    one, other = build({"name": "mind"}, seed=1), build({"name": "mind"}, seed=2)
    [logits], [again] = one.buffers(), other.buffers()
    assert torch.equal(logits, again)
    assert logits.shape == (4, LENGTH)
    assert logits.unique().numel() == logits.numel()
    assert one.state_dict().keys() == dict(one.named_parameters()).keys()
    assert not torch.equal(one.routing.map, other.routing.map)


def test_minds_first_logits_are_standard_normal() -> None:
    registered = find("model", "mind")
    shape = DataShape(num_users=5, num_item_rows=7, attributes={}, history_length=500)
    [logits] = registered.build(registered.config(num_interests=20), shape).buffers()
    assert abs(logits.mean()) < 0.04
    assert abs(logits.std() - 1) < 0.04


@pytest.mark.parametrize(
    ("length", "places"),
    [(1, [0, 0, 0]), (3, [0, 0, 0]), (4, [0, 1, 0]), (7, [0, 1, 0]), (8, [0, 1, 2]), (9, [0, 1, 2])],
)
def test_minds_number_of_interests_follows_the_history(length: int, places: list[int]) -> None:
    model = build({"name": "mind", "dynamic_interests": True, "num_interests": 3})
    [queries] = encode(model, item_rows(), ragged_batch([length])).queries
    assert torch.equal(queries, queries[places])
    distinct = queries[: max(places) + 1]
    assert len(distinct.unique(dim=0)) == len(distinct)


def test_a_second_interest_of_the_youtube_dnn_is_refused() -> None:
    config = find("model", "youtube_dnn").config
    with pytest.raises(ValidationError, match=r"num_interests\n.*leave it at 1"):
        config(num_interests=2)
    assert config().num_interests == 1


@pytest.mark.parametrize(
    ("name", "num_interests", "readout"),
    [("mind", 4, "attention"), ("comirec_sa", 4, "target"), ("youtube_dnn", 1, "hard")],
)
def test_defaults(name: str, num_interests: int, readout: str) -> None:
    registered = find("model", name)
    model = registered.build(registered.config(), SHAPE)
    assert (model.dim, model.num_interests, model.readout, model.causal) == (64, num_interests, readout, False)
