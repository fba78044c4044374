"""SASRec and GRU4Rec against the plain implementations in tests/oracles, and what makes a model causal, in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.config.registry import find
from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.models.interface import DataShape, Model, Rows
from eupmim_dist.models.layers import causal
from eupmim_dist.models.layers.causal import at_positions, causal_attention
from tests.oracles.causal_plain import plain_gru4rec, plain_sasrec

LENGTH, NUM_ITEMS, DIM = 6, 40, 8
SHAPE = DataShape(num_users=9, num_item_rows=NUM_ITEMS, attributes={}, history_length=LENGTH)
LENGTHS = (LENGTH, 4, 1, 5, 2)
VARIANTS = [
    ("sasrec", {}),
    ("sasrec", {"num_heads": 1, "num_layers": 1}),
    ("sasrec", {"num_heads": 4, "num_layers": 3, "num_interests": 3}),
    ("gru4rec", {}),
    ("gru4rec", {"hidden_size": 5, "num_layers": 2, "num_interests": 3}),
]
MODELS = [("sasrec", {}), ("sasrec", {"num_interests": 2}), ("gru4rec", {}), ("gru4rec", {"num_interests": 2})]


def batch(lengths: tuple[int, ...] = LENGTHS, num_predictions: int = 3) -> UserBatch:
    """Histories of those lengths, each with predictions at random places of it, its last one among them."""
    generator = torch.Generator().manual_seed(3)
    num = len(lengths)
    history = torch.randint(1, NUM_ITEMS, (num, LENGTH), generator=generator)
    position = torch.zeros(num, num_predictions, dtype=torch.int64)
    for row, length in enumerate(lengths):
        history[row, length:] = NO_ROW
        position[row] = torch.randint(max(length, 1), (num_predictions,), generator=generator)
        position[row, 0] = max(length - 1, 0)
    return user_batch(history, position)


def user_batch(history: Tensor, position: Tensor) -> UserBatch:
    num = len(history)
    return UserBatch(
        num_predictions=max(1, position.numel()),
        capacity=num,
        user=torch.zeros(num, dtype=torch.int64),
        attributes=torch.zeros(num, 0, dtype=torch.int64),
        history=history,
        position=position,
    )


def build(name: str, options: dict[str, Any]) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    registered = find("model", name)
    model = registered.build(registered.config(**{"dim": DIM, "dropout": 0.3, **options}), SHAPE).double().eval()
    for parameter in model.parameters():  # biases too, so that every term counts
        torch.nn.init.normal_(parameter, std=0.5)
    [spec] = model.tables()
    return model, torch.randn(spec.rows, spec.dim, dtype=torch.float64, requires_grad=True)


def look_up(model: Model, table: Tensor, samples: UserBatch) -> Rows:
    return {
        use: torch.where((ids == NO_ROW)[..., None], 0.0, table[ids.clamp(min=0)])
        for use, (_, ids) in model.uses(samples).items()
    }


def queries(model: Model, table: Tensor, samples: UserBatch) -> Tensor:
    encoded = model(look_up(model, table, samples), samples)
    assert not encoded.penalties
    return encoded.queries


def at_each_place(x: Tensor, samples: UserBatch) -> Tensor:
    return x.view(*samples.position.shape, *x.shape[1:])


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_queries_and_gradients_are_the_oracles(name: str, options: dict[str, Any]) -> None:
    model, table = build(name, options)
    samples = batch((*LENGTHS, 0))
    weights = {**dict(model.named_parameters()), "item": table}
    if name == "sasrec":
        expected = plain_sasrec(weights, samples.history, samples.position, num_heads=options.get("num_heads", 2))
    else:
        expected = plain_gru4rec(weights, samples.history, samples.position)
    got = queries(model, table, samples)
    assert got.shape == (samples.position.numel(), options.get("num_interests", 1), DIM)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    upstream = torch.randn_like(got)
    ours, theirs = (torch.autograd.grad(out, list(weights.values()), upstream) for out in (got, expected))
    for key, mine, other in zip(weights, ours, theirs, strict=True):
        assert other.abs().max() > 1e-6, key
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_what_comes_after_a_position_changes_nothing_there(name: str, options: dict[str, Any]) -> None:
    model, table = build(name, options)
    everywhere = torch.arange(LENGTH).expand(2, -1)
    samples = user_batch(torch.randint(1, NUM_ITEMS, (2, LENGTH)), everywhere)
    before = at_each_place(queries(model, table, samples), samples)
    for place in range(LENGTH):
        history = samples.history.clone()
        history[:, place] = history[:, place] % (NUM_ITEMS - 1) + 1
        after = at_each_place(queries(model, table, replace(samples, history=history)), samples)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=1e-12, atol=1e-12)
        assert ((after - before)[:, place:].abs().amax((2, 3)) > 1e-6).all(), "and everything from there on changes"


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_what_stands_at_padded_places_does_not_matter(name: str, options: dict[str, Any]) -> None:
    model, table = build(name, options)
    samples = batch()
    rows = look_up(model, table, samples)["history"].detach()
    padded = (samples.history == NO_ROW)[..., None].expand_as(rows)
    poisoned = torch.where(padded, 1e3 * torch.randn_like(rows), rows).requires_grad_()
    got = model({"history": poisoned}, samples).queries
    torch.testing.assert_close(got, queries(model, table, samples), rtol=1e-12, atol=1e-12)
    [gradient] = torch.autograd.grad(got, poisoned, torch.randn_like(got))
    assert not gradient[padded].any()
    assert (gradient.abs().amax(2) > 0).equal(samples.history != NO_ROW)


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_a_history_is_the_same_in_a_longer_window(name: str, options: dict[str, Any]) -> None:
    model, table = build(name, options)
    samples = batch((3, 2, 1))
    narrow = replace(samples, history=samples.history[:, :3])
    torch.testing.assert_close(queries(model, table, narrow), queries(model, table, samples), rtol=1e-12, atol=1e-12)


def test_sasrec_knows_the_order_of_the_items() -> None:
    """Without positions and with one layer, attention would not."""
    model, table = build("sasrec", {"num_layers": 1})
    samples = user_batch(torch.tensor([[1, 2, 3, 4, 5, 6], [2, 1, 3, 4, 5, 6]]), torch.full((2, 1), LENGTH - 1))
    one, other = queries(model, table, samples)
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_predictions_of_a_sample_are_those_of_batches_with_one_each(name: str, options: dict[str, Any]) -> None:
    model, table = build(name, options)
    samples = batch()
    together = at_each_place(queries(model, table, samples), samples)
    for place in range(samples.position.shape[1]):
        alone = queries(model, table, replace(samples, position=samples.position[:, place : place + 1]))
        torch.testing.assert_close(alone, together[:, place], rtol=1e-12, atol=1e-12)
    assert (together[:, 0] != together[:, 1]).any(), "the predictions differ"


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_a_batch_of_nobody_has_no_queries_and_zero_gradients(name: str, options: dict[str, Any]) -> None:
    model, table = build(name, options)
    model.train()
    got = queries(model, table, batch(()))
    assert got.shape == (0, options.get("num_interests", 1), DIM)
    got.sum().backward()
    for key, parameter in model.named_parameters():  # a gradient, not None: DDP waits for each
        assert parameter.grad is not None, key
        assert not parameter.grad.any(), key


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_a_history_of_padding_alone_is_finite_and_teaches_nothing(
    name: str, options: dict[str, Any], training: bool
) -> None:
    model, table = build(name, options)
    samples = batch((0, LENGTH, 0))
    model.train(training)
    got = queries(model, table, samples)
    assert got.isfinite().all()
    empty = (samples.history == NO_ROW).all(1).repeat_interleave(samples.position.shape[1])
    gradients = torch.autograd.grad(got[empty].sum(), [*model.parameters(), table], retain_graph=True)
    assert not any(gradient.any() for gradient in gradients)
    gradients = torch.autograd.grad(got[~empty].square().sum(), [*model.parameters(), table])
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    model.eval()
    alone = user_batch(samples.history[1:2], samples.position[1:2])
    torch.testing.assert_close(queries(model, table, alone), queries(model, table, samples)[~empty])


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_dropout_is_on_in_training_only(name: str, options: dict[str, Any]) -> None:
    model, table = build(name, options)
    samples = batch()
    quiet = queries(model, table, samples)
    assert torch.equal(queries(model, table, samples), quiet)
    model.train()
    torch.manual_seed(1)
    first = queries(model, table, samples)
    assert (first != quiet).flatten(1).any(1).all()
    assert not torch.equal(queries(model, table, samples), first)
    torch.manual_seed(1)
    assert torch.equal(queries(model, table, samples), first)
    undropped, _ = build(name, {**options, "dropout": 0.0})
    torch.testing.assert_close(queries(undropped.train(), table, samples), quiet)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_what_the_registry_and_the_interface_ask_for(name: str) -> None:
    registered = find("model", name)
    config = registered.config()
    assert (config.name, config.dim, config.num_interests) == (name, 64, 1)
    model = registered.build(config, SHAPE)
    assert model.causal
    assert (model.dim, model.num_interests) == (64, 1)
    [spec] = model.tables()
    assert (spec.name, spec.rows, spec.dim, spec.id_map, spec.padding_row) == ("item", NUM_ITEMS, 64, "items", 0)
    samples = batch()
    assert model.uses(samples) == {"history": ("item", samples.history)}
    several = registered.config(num_interests=3, dim=8)
    rows = {"history": torch.randn(len(samples), LENGTH, 8)}
    assert registered.build(several, SHAPE)(rows, samples).queries.shape == (samples.position.numel(), 3, 8)
    with pytest.raises(ValidationError, match="num_layer\n"):
        registered.config(num_layer=2)
    with pytest.raises(ValidationError, match="dropout"):
        registered.config(dropout=1.0)


def test_heads_that_do_not_share_the_width_are_refused_with_those_that_do() -> None:
    with pytest.raises(ValidationError, match=r"num_heads 4 must divide dim 10: use one of 1, 2, 5, 10"):
        find("model", "sasrec").config(dim=10, num_heads=4)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 7, causal.BLOCK, causal.BLOCK + 1, 2 * causal.BLOCK + 20])
def test_causal_attention_and_its_gradient_are_torchs(length: int, num_heads: int) -> None:
    qkv = (2 * torch.randn(3, length, 3 * 8, dtype=torch.float64)).requires_grad_()
    before = qkv.detach().clone()
    ours = causal_attention(qkv, num_heads, dropout=0.0)
    query, key, value = qkv.view(3, length, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    theirs = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).reshape(3, length, 8)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    [mine], [other] = (torch.autograd.grad(out, qkv, upstream) for out in (ours, theirs))
    torch.testing.assert_close(mine, other)
    assert torch.equal(qkv, before)


def test_the_path_for_gpus_and_bfloat16_is_the_same_attention() -> None:
    qkv = torch.randn(4, 60, 3 * 8)
    low = causal_attention(qkv.bfloat16(), 2, dropout=0.0)
    torch.testing.assert_close(low.float(), causal_attention(qkv, 2, dropout=0.0), rtol=0.05, atol=0.05)


def test_gradients_with_dropout_are_those_of_what_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "BLOCK", 3)
    qkv = torch.randn(2, 7, 3 * 4, dtype=torch.float64, requires_grad=True)

    def same_draws(qkv: Tensor) -> Tensor:
        torch.manual_seed(0)
        return causal_attention(qkv, 2, dropout=0.4)

    assert not torch.allclose(same_draws(qkv), causal_attention(qkv, 2, dropout=0.0))
    assert torch.autograd.gradcheck(same_draws, (qkv,))


def test_dropout_of_the_attention_weights_keeps_their_mean() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(1, 60, 3 * 4, dtype=torch.float64)
    drawn = causal_attention(qkv.expand(4000, -1, -1), 1, dropout=0.3)
    error = drawn.mean(0) - causal_attention(qkv, 1, dropout=0.0)[0]
    assert (error.abs() < 6 * drawn.std(0) / 4000**0.5).all()
    assert ((drawn[:, 0] == 0).all(1).double().mean() - 0.3).abs() < 0.05  # place 0 has one weight


def test_at_positions_takes_each_samples_own() -> None:
    x = torch.arange(24.0).view(2, 4, 3)
    got = at_positions(x, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(got, torch.stack([x[0, [3, 0]], x[1, [1, 1]]]))
