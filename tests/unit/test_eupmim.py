"""E-UPMiM and ComiRec-DR against the deliberately plain implementations in tests/oracles, in float64."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from eupmim_dist.config.registry import find
from eupmim_dist.data.batch import NO_ROW, UserBatch, last_position
from eupmim_dist.models.comirec_dr import ComiRecDRConfig
from eupmim_dist.models.eupmim.config import EUPMiMConfig
from eupmim_dist.models.eupmim.release import NAMES
from eupmim_dist.models.interface import DataShape, Model, Rows
from eupmim_dist.models.release import their_name
from eupmim_dist.objectives.sampled_softmax import Sampled, SampledSoftmax, SampledSoftmaxConfig
from tests.oracles.causal_plain import plain_causal_eupmim
from tests.oracles.eupmim_plain import plain_comirec, plain_eupmim, plain_loss

SHAPE = DataShape(num_users=9, num_item_rows=40, attributes={"age": 7, "gender": 2, "occupation": 5}, history_length=6)
ATTRIBUTE_TABLES = [f"user_{name}_embedding_matrix.weight" for name in ("age", "gender", "occup")]
PLAIN_NAMES = {
    **NAMES,
    **{f"profile.attributes.{i}.weight": name for i, name in enumerate(ATTRIBUTE_TABLES)},
    "extractor.encoder.": "multi_interest_network.encoder.",
    "extractor.weights": "multi_interest_network.weights",
}


def batch(num: int = 5) -> UserBatch:
    generator = torch.Generator().manual_seed(3)
    history = torch.randint(1, 40, (num, 6), generator=generator)
    for row, length in enumerate((6, 4, 1, 5, 2)[:num]):
        history[row, length:] = NO_ROW
    return UserBatch(
        num_predictions=max(num, 1),
        capacity=num,
        user=torch.randint(0, 9, (num,), generator=generator),
        attributes=torch.stack([torch.randint(0, n, (num,), generator=generator) for n in (7, 2, 5)], dim=1),
        history=history,
        position=last_position(history),
        target=torch.randint(1, 40, (num, 1), generator=generator),
    )


def candidates_of(samples: UserBatch) -> Sampled:
    negatives = torch.randint(0, 40, (len(samples), 3), generator=torch.Generator().manual_seed(4))
    return Sampled(torch.cat([samples.target, negatives], dim=1))


def build(config: Any) -> tuple[Model, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = find("model", config.name).build(config, SHAPE).double().eval()
    for parameter in model.parameters():  # biases too, so that every term counts
        torch.nn.init.normal_(parameter, std=0.5)
    tables = {spec.name: torch.randn(spec.rows, spec.dim, dtype=torch.float64) for spec in model.tables()}
    return model, tables


def look_up(model: Model, tables: dict[str, Tensor], samples: UserBatch) -> Rows:
    uses = model.uses(samples) | candidates_of(samples).uses() if samples.target is not None else model.uses(samples)
    return {
        name: torch.where((ids == NO_ROW)[..., None], 0.0, tables[table][ids.clamp(min=0)])
        for name, (table, ids) in uses.items()
    }


def shares_of(model: Model, rows: Rows, samples: UserBatch) -> dict[str, Tensor]:
    task: Any = SimpleNamespace(store=SimpleNamespace(num_item_rows=40), history_length=6, seed=0)
    objective = SampledSoftmax(SampledSoftmaxConfig(num_negatives=3), model, task)
    return objective(model(rows, samples), rows, samples, candidates_of(samples), None)


def plain_weights(model: Model, tables: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {their_name(name, PLAIN_NAMES): p.detach() for name, p in model.named_parameters()}
    unused = {name: torch.zeros(9, 8) for name in ATTRIBUTE_TABLES}
    return {
        **unused,
        **weights,
        "mid_embeddings_var.weight": tables["item"],
        "user_embeddings_var.weight": tables.get("user", torch.zeros(9, 8, dtype=torch.float64)),
    }


VARIANTS = [
    ({}, {}),
    ({"profile_attention": "full"}, {"profile_attention": "full"}),
    ({"profile_attention": "none"}, {"use_profile_attention": False}),
    ({"profile_attention": "none", "profile": False}, {"use_profile_attention": False, "use_profile": False}),
    ({"graph": False}, {"use_graph": False}),
    ({"orthogonal": False}, {"gram_schmidt": False}),
    ({"extractor": "linear"}, {"extractor": "linear"}),
    ({"extractor": "capsule"}, {"extractor": "capsule"}),
    ({"num_levels": 1, "num_interests": 1, "num_encoder_layers": 1}, {"num_levels": 1}),
]


@pytest.mark.parametrize(("ours", "plain"), VARIANTS, ids=[str(ours) for ours, _ in VARIANTS])
def test_interests_and_loss_equal_the_plain_implementation(ours: dict[str, Any], plain: dict[str, Any]) -> None:
    config = EUPMiMConfig(**{"dim": 8, "num_heads": 2, "num_levels": 2, "num_encoder_layers": 2, **ours})
    model, tables = build(config)
    samples = batch()
    plain = {"num_levels": 2, "num_heads": 2, **plain}
    mask = (samples.history != NO_ROW).double()
    weights = plain_weights(model, tables)
    expected = plain_eupmim(weights, samples.history.clamp(min=0), mask, samples.user, samples.attributes, **plain)
    rows = look_up(model, tables, samples)
    torch.testing.assert_close(model(rows, samples).queries, expected["interests"], rtol=1e-9, atol=1e-10)

    fields = {
        "history": samples.history.clamp(min=0),
        "mask": mask,
        "user": samples.user,
        "attributes": samples.attributes,
        "target": candidates_of(samples).own[:, 0],
        "negatives": candidates_of(samples).own[:, 1:],
    }
    parts = shares_of(model, rows, samples)
    expected_loss = plain_loss(weights, fields, l2=0.0, adjacency_weight=1e-5, **plain)
    assert sum(float(part.detach()) for part in parts.values()) == pytest.approx(float(expected_loss["loss"]), rel=1e-6)


def test_gradients_equal_the_plain_implementation() -> None:
    config = EUPMiMConfig(dim=8, num_heads=2, num_levels=2, num_encoder_layers=2)
    model, tables = build(config)
    samples = batch()
    rows = {name: row.requires_grad_() for name, row in look_up(model, tables, samples).items()}
    torch.stack(list(shares_of(model, rows, samples).values())).sum().backward()

    weights = {name: w.clone().requires_grad_() for name, w in plain_weights(model, tables).items()}
    fields = {
        "history": samples.history.clamp(min=0),
        "mask": (samples.history != NO_ROW).double(),
        "user": samples.user,
        "attributes": samples.attributes,
        "target": candidates_of(samples).own[:, 0],
        "negatives": candidates_of(samples).own[:, 1:],
    }
    plain_loss(weights, fields, l2=0.0, adjacency_weight=1e-5, num_levels=2, num_heads=2)["loss"].backward()
    for name, parameter in model.named_parameters():
        theirs = weights[their_name(name, PLAIN_NAMES)].grad
        torch.testing.assert_close(parameter.grad, theirs, rtol=1e-5, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    summed = torch.zeros_like(tables["item"])
    for name, (table, ids) in (model.uses(samples) | candidates_of(samples).uses()).items():
        if table == "item":
            real = (ids != NO_ROW).view(-1, 1)
            summed.index_add_(0, ids.clamp(min=0).flatten(), rows[name].grad.flatten(0, -2) * real)
    torch.testing.assert_close(summed, weights["mid_embeddings_var.weight"].grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_causal_interests_and_gradients_equal_the_plain_implementation(orthogonal: bool) -> None:
    options: dict[str, Any] = {"num_levels": 2, "num_heads": 2}
    config = EUPMiMConfig(
        dim=8,
        num_encoder_layers=2,
        extractor="causal",
        profile_attention="full",
        orthogonal=orthogonal,
        adjacency_l1=0.01,
        **options,
    )
    model, tables = build(config)
    samples = batch()
    last = samples.position[:, 0]
    position = torch.stack([last, last // 2, torch.zeros_like(last)], dim=1)
    samples = replace(samples, position=position, user=torch.cat([samples.user[:-1], torch.tensor([NO_ROW])]))
    weights = {**dict(model.named_parameters()), **{name: table.requires_grad_() for name, table in tables.items()}}
    expected, edges = plain_causal_eupmim(
        weights,
        samples.history,
        position,
        samples.user,
        samples.attributes,
        orthogonal=orthogonal,
        **options,
    )
    found = model(look_up(model, tables, replace(samples, target=None)), samples)
    torch.testing.assert_close(found.queries, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.penalties["adjacency"], 0.01 * edges, rtol=1e-9, atol=1e-10)
    upstream = torch.randn_like(expected)
    ours = torch.autograd.grad((found.queries * upstream).sum() + found.penalties["adjacency"], list(weights.values()))
    theirs = torch.autograd.grad((expected * upstream).sum() + 0.01 * edges, list(weights.values()))
    for name, mine, other in zip(weights, ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("projection", [True, False])
def test_comirec_equals_the_plain_implementation(projection: bool) -> None:
    model, tables = build(ComiRecDRConfig(dim=8, num_interests=3, projection=projection))
    samples = batch()
    weights = {
        "mid_embeddings_var.weight": tables["item"],
        "capsule_network.weights": model.get_parameter("capsules.weights").detach(),
    }
    if projection:
        weights["capsule_network.proj.weight"] = model.get_parameter("projection.0.weight").detach()
        weights["capsule_network.proj.bias"] = model.get_parameter("projection.0.bias").detach()
    mask = (samples.history != NO_ROW).double()
    expected = plain_comirec(weights, samples.history.clamp(min=0), mask, project=projection)
    rows = look_up(model, tables, samples)
    torch.testing.assert_close(model(rows, samples).queries, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "config", [EUPMiMConfig(), EUPMiMConfig(extractor="capsule"), EUPMiMConfig(extractor="causal"), ComiRecDRConfig()]
)
def test_empty_and_all_padding_batches_stay_finite(config: Any) -> None:
    model, tables = build(config)
    nobody = batch(0)
    parts = shares_of(model, look_up(model, tables, nobody), nobody)
    assert all(float(part) == 0.0 for part in parts.values())
    torch.stack(list(parts.values())).sum().backward()
    padding = UserBatch(
        num_predictions=1,
        capacity=1,
        user=torch.tensor([NO_ROW]),
        attributes=torch.zeros(1, 3, dtype=torch.int64),
        history=torch.full((1, 6), NO_ROW),
        position=torch.zeros(1, 1, dtype=torch.int64),
    )
    assert model(look_up(model, tables, padding), padding).queries.isfinite().all()
