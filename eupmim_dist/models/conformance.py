"""What every model keeps to (interface.py), this package's and those of other packages, as one check for their tests.

    check_model(find("model", "sasrec"), num_interests=2)

Much of it is what lets W ranks train what one would: they cut a batch as they like, some of them get none of it, and
all build the same weights. B samples, L history, P predictions per sample, Q = B * P queries, K interests, D dim.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from eupmim_dist.config.registry import Registered, names, reason
from eupmim_dist.config.schema import ModelSection
from eupmim_dist.data.batch import NO_ROW, UserBatch, last_position
from eupmim_dist.models.interface import ITEM_TABLE, DataShape, Encoded, Model, Rows, TableSpec, item_table

SHAPE = DataShape(num_users=11, num_item_rows=37, attributes={"age": 3, "gender": 2}, history_length=6)
LENGTHS = [6, 4, 1, 5, 0, 2, 6]
"""Of the histories of a batch; one is empty."""
FULL = [6, 6, 6, 6]
BATCHES = {"full histories": FULL, "several samples": LENGTHS, "empty histories alone": [0, 0], "no samples": []}


def check_model(registered: Registered, **settings: Any) -> None:
    """Raises AssertionError, which tells in a sentence what the model does not keep to.

    `settings` are keys of its section, such as a small `dim`; check a model with options once for each that matters.
    """
    section = _check_section(registered, settings)
    case = _Case(registered, section)
    for check in (
        _check_tables,
        _check_uses,
        _check_queries,
        _check_padding,
        _check_order_of_samples,
        _check_predictions,
        _check_targets,
        _check_gradients,
        _check_weights,
        _check_state,
        _check_attributes,
    ):
        with case.trying("checking it"):
            check(case)


class _Case:
    """A model, in eval mode and with weights that have moved a little, and rows for what it looks up."""

    def __init__(self, registered: Registered, section: ModelSection) -> None:
        self.name, self.registered, self.section = section.name, registered, section
        self.model = self.build()
        with self.trying("tables()"):
            self.tables: dict[str, TableSpec] = {spec.name: spec for spec in self.model.tables()}
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # zeros would hide what does not depend on what
            for parameter in self.model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        self.weights = {n: torch.randn(t.rows, t.dim, generator=generator) for n, t in self.tables.items()}

    def build(self, seed: int = 0) -> Model:
        with self.trying("building it"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.registered.build(self.section, SHAPE)
        self.require(isinstance(model, Model), f"is built as a {type(model).__name__}, which is no Model")
        fed = model.batch_type
        self.require(issubclass(UserBatch, fed), f"is fed with {fed.__name__}, and this check has a UserBatch only")
        return model.eval()

    def require(self, condition: bool, otherwise: str) -> None:
        if not condition:  # no assert statement, which python -O leaves out
            raise AssertionError(f"model {self.name}: {otherwise}")

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        try:
            yield
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"model {self.name}: {what} fails ({reason(error)})") from error

    def rows(self, batch: UserBatch, model: Model | None = None) -> Rows:
        """As the tables give them: zeros for NO_ROW."""
        found = {}
        for use, (table, ids) in (model or self.model).uses(batch).items():
            rows = torch.where((ids == NO_ROW)[..., None], 0.0, self.weights[table][ids.clamp(min=0)])
            found[use] = rows.requires_grad_()
        return found

    def encode(self, batch: UserBatch, what: str, rows: Rows | None = None, model: Model | None = None) -> Encoded:
        with self.trying(f"a batch of {what}"):
            model = model or self.model
            found = model(self.rows(batch, model) if rows is None else rows, batch)
        self.require(isinstance(found, Encoded), f"encode gives a {type(found).__name__} and not an Encoded")
        return found

    def queries(self, batch: UserBatch, what: str = "several samples", **others: Any) -> Tensor:
        return self.encode(batch, what, **others).queries.detach()

    def require_equal(self, one: Tensor, other: Tensor, otherwise: str) -> None:
        scale = float(other.abs().max()) if other.numel() else 0.0
        self.require(one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5 * scale), otherwise)

    def batch(self, lengths: list[int], num_predictions: int = 3) -> UserBatch:
        """With histories of those lengths; so many predictions for each if the model is causal, one if it is not."""
        generator = torch.Generator().manual_seed(len(lengths))
        num, length = len(lengths), SHAPE.history_length

        def draw(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, shape, generator=generator)

        inside = torch.arange(length) < torch.tensor(lengths, dtype=torch.int64).view(num, 1)
        history = torch.where(inside, draw(1, SHAPE.num_item_rows, num, length), NO_ROW)
        position = last_position(history)
        if self.model.causal:
            position = torch.cat([position, draw(0, 1000, num, num_predictions - 1) % (position + 1)], dim=1)
        return UserBatch(
            num_predictions=max(1, position.numel()),
            capacity=num,
            user=torch.where(torch.arange(num) == 0, NO_ROW, draw(0, SHAPE.num_users, num)),
            attributes=torch.stack([draw(0, rows, num) for rows in SHAPE.attributes.values()], dim=1),
            history=history,
            position=position,
            target=draw(1, SHAPE.num_item_rows, *position.shape),
            counter=torch.arange(position.numel()).view(position.shape),
        )


def _check_section(registered: Registered, settings: dict[str, Any]) -> ModelSection:
    config = registered.config
    told = f"the configuration {config.__name__}"
    if not issubclass(config, ModelSection):
        raise AssertionError(f"{told} is no ModelSection")
    name = config.model_fields["name"].default
    if not isinstance(name, str):
        raise AssertionError(f"{told} has no default for `name`, which is the name that it is registered by")
    for wrong, otherwise in (
        ({"name": f"{name}_"}, f"takes any name; declare it as name: Literal[{name!r}] = {name!r}"),
        ({"no_such_setting": 1}, "takes settings that it does not have, so a misspelt one would do nothing"),
    ):
        try:
            config(**{**settings, **wrong})
        except ValidationError:
            continue
        raise AssertionError(f"{told} {otherwise}")
    section: ModelSection = config(**settings)
    dumped = yaml.safe_dump(section.model_dump(mode="json"))
    if config.model_validate(yaml.safe_load(dumped)) != section:
        raise AssertionError(f"{told} is another one after it was written to YAML and read again")
    return section


def _check_tables(case: _Case) -> None:
    specs = case.model.tables()
    case.require(len(case.tables) == len(specs), "two of its tables have one name")
    case.require(ITEM_TABLE in case.tables, f"has no table {ITEM_TABLE!r}, which is what is ranked")
    found, expected = case.tables[ITEM_TABLE], item_table(SHAPE, case.model.dim)
    for key in ("rows", "dim", "padding_row", "id_map"):
        ours, theirs = getattr(found, key), getattr(expected, key)
        case.require(ours == theirs, f"{key} of its table {ITEM_TABLE!r} is {ours!r} and not {theirs!r}")
    for spec in specs:
        wrong = spec.id_map == "users" and spec.rows != SHAPE.num_users
        case.require(not wrong, f"its table {spec.name!r} has {spec.rows} rows, not one for each user")
    case.require(case.model.scorer in names("scorer"), f"its scorer {case.model.scorer!r} is none that there is")


def _check_uses(case: _Case) -> None:
    batch = case.batch(LENGTHS)
    with case.trying("uses()"):
        uses = case.model.uses(batch)
        ranked = case.model.uses(replace(batch, target=None, counter=None))
    case.require(uses.keys() == ranked.keys(), "looks up other things where users are only ranked for")
    for use, (table, ids) in uses.items():
        told = f"its use {use!r}"
        case.require(table in case.tables, f"{told} is of a table {table!r}, which is none of its own")
        case.require(ids.dtype == torch.int64, f"the ids of {told} are {ids.dtype} and not int64")
        first = ids.shape[:1] == (len(batch),)
        case.require(first, f"the ids of {told} are {list(ids.shape)}: the samples do not come first")
        inside = bool(((ids >= NO_ROW) & (ids < case.tables[table].rows)).all())
        case.require(inside, f"the ids of {told} are not all rows of table {table!r}")


def _check_queries(case: _Case) -> None:
    model = case.model
    for what, lengths in BATCHES.items():
        batch = case.batch(lengths)
        encoded = case.encode(batch, what)
        found, expected = list(encoded.queries.shape), [batch.position.numel(), model.num_interests, model.dim]
        case.require(found == expected, f"the queries of {what} are {found} and not {expected}")
        case.require(bool(encoded.queries.isfinite().all()), f"the queries of {what} are not all finite")
        case.require(
            model.tells_routing == (encoded.routing is not None), "tells_routing is not whether encode gives a routing"
        )
        if encoded.routing is not None:
            found, expected = list(encoded.routing.shape), [*found[:2], SHAPE.history_length]
            case.require(found == expected, f"the routing of {what} is {found} and not {expected}: length last")
        for name, value in encoded.penalties.items():
            case.require(value.dim() == 0, f"its penalty {name!r} is {list(value.shape)} and not a number")


def _check_padding(case: _Case) -> None:
    batch = case.batch(LENGTHS)
    case.require_equal(case.queries(batch), case.queries(batch), "its queries differ from call to call in eval mode")
    rows = case.rows(batch)
    generator = torch.Generator().manual_seed(2)
    for use, (_, ids) in case.model.uses(batch).items():
        if ids.shape == batch.history.shape:
            anything = 3.0 * torch.randn(rows[use].shape, generator=generator)
            rows[use] = torch.where(((ids == NO_ROW) & (batch.history == NO_ROW))[..., None], anything, rows[use])
    found = case.queries(batch, rows=rows)
    case.require_equal(found, case.queries(batch), "its queries depend on what stands at padded places")


def _check_order_of_samples(case: _Case) -> None:
    batch = case.batch(LENGTHS)
    whole = case.queries(batch)
    number = len(batch) + 1  # so that one is empty
    parts = [case.queries(batch.micro_batch(i, number), "one sample or none") for i in range(number)]
    case.require_equal(torch.cat(parts), whole, "its queries depend on the samples that they share a batch with")
    order = torch.arange(len(batch)).flip(0)
    expected = whole.view(*batch.position.shape, *whole.shape[1:])[order].view(whole.shape)
    turned = case.queries(batch._map(lambda tensor: tensor[order]))
    case.require_equal(turned, expected, "its queries are not in the order of samples")


def _check_predictions(case: _Case) -> None:
    """Several predictions of a sample, from one pass over its history."""
    if not case.model.causal:
        return
    batch = case.batch(LENGTHS, num_predictions=3)
    together = case.queries(batch).view(*batch.position.shape, case.model.num_interests, case.model.dim)
    for number in range(3):
        alone = replace(batch, position=batch.position[:, number : number + 1])
        case.require_equal(
            case.queries(alone), together[:, number], "its queries of a sample are not in the order of batch.position"
        )
    full = case.batch(FULL, num_predictions=1)
    middle = replace(full, position=torch.full_like(full.position, 2))
    later = torch.arange(SHAPE.history_length) > 2
    other = replace(middle, history=torch.where(later, full.history % (SHAPE.num_item_rows - 1) + 1, full.history))
    case.require_equal(
        case.queries(other), case.queries(middle), "is causal, but its queries depend on what comes after their place"
    )


def _check_targets(case: _Case) -> None:
    batch = case.batch(LENGTHS)
    ranked = replace(batch, target=None, counter=None, num_predictions=len(batch))
    case.require_equal(
        case.queries(ranked, "users that are only ranked for"), case.queries(batch), "its queries depend on the targets"
    )


def _check_gradients(case: _Case) -> None:
    """DDP waits for every parameter's, on every rank, whatever samples that has."""
    model = case.model.train()
    for what, lengths in BATCHES.items():
        batch = case.batch(lengths)
        rows = case.rows(batch)
        encoded = case.encode(batch, what, rows)
        model.zero_grad(set_to_none=True)
        with case.trying(f"the backward pass of {what}"):
            torch.stack([encoded.queries.sum(), *encoded.penalties.values()]).sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                case.require(parameter.grad is not None, f"its parameter {name} gets no gradient from {what}")
        leaves: dict[str, Tensor] = {f"its parameter {name}": parameter for name, parameter in model.named_parameters()}
        leaves |= {f"the rows of its use {use!r}": of_use for use, of_use in rows.items()}
        for told, leaf in leaves.items():
            finite = leaf.grad is None or bool(leaf.grad.isfinite().all())
            case.require(finite, f"the gradient of {told} from {what} is not finite")
    model.zero_grad(set_to_none=True)
    model.eval()


def _check_weights(case: _Case) -> None:
    one, other = (dict(case.build(seed=5).named_parameters()) for _ in range(2))
    case.require(bool(one), "has no parameters, and the optimizer of the dense network needs some")
    for name, parameter in one.items():
        case.require(
            torch.equal(parameter, other[name]), f"its parameter {name} starts otherwise when it is built again"
        )


def _check_state(case: _Case) -> None:
    """A checkpoint holds parameters and nothing else; `case.model` has been through training steps by now."""
    model, fresh = case.model, case.build(seed=6)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            parameter.copy_(model.get_parameter(name))
    kept = model.state_dict().keys() & dict(model.named_buffers()).keys()
    case.require(not kept, f"its buffer {min(kept, default='')} would be in no checkpoint: make it persistent=False")
    batch = case.batch(LENGTHS)
    case.require_equal(
        case.queries(batch, model=fresh),
        case.queries(batch),
        "another one with the same parameters gives other queries, so a checkpoint would not hold all of it",
    )


def _check_attributes(case: _Case) -> None:
    """Also on the meta device, where `--init-from` builds a model to ask it this."""
    parameters = dict(case.model.named_parameters())
    with case.trying("attribute_weights()"):
        weights = case.model.attribute_weights()
    for attribute, name in weights.items():
        told = f"attribute_weights() names {name!r} for {attribute!r}"
        case.require(attribute in SHAPE.attributes, f"{told}, which is no attribute of the data")
        case.require(name in parameters, f"{told}, which is none of its parameters")
        expected, found = SHAPE.attributes[attribute], parameters[name].shape[0]
        case.require(found == expected, f"{told}, which has {found} rows for {expected} values")
    with case.trying("building it on the meta device"), torch.device("meta"):
        again = case.registered.build(case.section, SHAPE).attribute_weights()
    case.require(again == weights, "attribute_weights() differs from one to another")
