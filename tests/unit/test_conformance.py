"""What every model keeps to: all registered ones do, and models that break one rule each are told which."""

import itertools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, field_serializer
from torch import Tensor, nn

from eupmim_dist.config.registry import Registered, find
from eupmim_dist.config.schema import ModelSection
from eupmim_dist.data.batch import NO_ROW, Batch, UserBatch
from eupmim_dist.models.conformance import check_model
from eupmim_dist.models.interface import DataShape, Encoded, Model, Rows, TableSpec, Uses, item_table
from tests.models import of_histories

pytestmark = pytest.mark.usefixtures("one_thread")

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"dim": 8}) for name in of_histories()),
    ("comirec_dr", {"projection": False}),
    ("eupmim", {"extractor": "capsule"}),
    ("eupmim", {"extractor": "linear", "profile_attention": "full", "unseen_users": "table"}),
    ("eupmim", {"extractor": "causal", "num_heads": 2, "dim": 8}),
    ("eupmim", {"extractor": "causal", "num_interests": 1, "profile_attention": "full", "orthogonal": False}),
    ("eupmim", {"extractor": "causal", "user_dropout": 0.5}),
    ("eupmim", {"graph": False}),
    ("eupmim", {"profile": False, "profile_attention": "none"}),
    ("gru4rec", {"num_interests": 3, "num_layers": 2}),
    ("mind", {"attributes": True}),
    ("mind", {"dynamic_interests": True, "num_interests": 3}),
    ("sasrec", {"num_interests": 3}),
    ("youtube_dnn", {"attributes": True, "hidden": []}),
]


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_every_registered_model_keeps_to_the_interface(name: str, settings: dict[str, Any]) -> None:
    check_model(find("model", name), **settings)


class PlainConfig(ModelSection):
    name: Literal["plain"] = "plain"
    dim: int = 4


class Plain(Model):
    """Keeps to everything: a linear map of the mean of the history, one for each interest, and of two attributes."""

    def __init__(self, config: PlainConfig, shape: DataShape) -> None:
        super().__init__()
        self.dim, self.num_interests, self.shape = config.dim, config.num_interests, shape
        self.age = nn.Embedding(shape.attributes["age"], config.dim)
        self.maps = nn.Linear(config.dim, config.num_interests * config.dim)

    def tables(self) -> list[TableSpec]:
        return [item_table(self.shape, self.dim)]

    def uses(self, batch: UserBatch) -> Uses:
        return {"history": ("item", batch.history)}

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        return Encoded(self.interests(self.mean(rows, batch), batch))

    def mean(self, rows: Rows, batch: UserBatch) -> Tensor:
        mask = (batch.history != NO_ROW).float()[:, None]
        return (mask @ rows["history"])[:, 0] / mask.sum(-1).clamp(min=1)

    def interests(self, vectors: Tensor, batch: UserBatch) -> Tensor:
        age = self.age(batch.attributes[:, 0])
        return self.maps(vectors + age).view(len(batch), self.num_interests, self.dim)

    def attribute_weights(self) -> dict[str, str]:
        return {"age": "age.weight"}


class Causal(Plain):
    """The same of the items up to each place."""

    causal = True

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        items = rows["history"] * (batch.history != NO_ROW)[..., None]
        means = items.cumsum(1) / torch.arange(1, batch.history.shape[1] + 1)[:, None]
        means = self.at(means, batch.position) + self.age(batch.attributes[:, :1])
        return Encoded(self.maps(means).view(-1, self.num_interests, self.dim))

    def at(self, means: Tensor, position: Tensor) -> Tensor:
        return means.gather(1, position[..., None].expand(-1, -1, self.dim))


@pytest.mark.parametrize("model", [Plain, Causal])
def test_a_plain_model_of_another_package_passes(model: type[Model]) -> None:
    check_model(Registered(PlainConfig, model))
    check_model(Registered(PlainConfig, model), num_interests=1, dim=6)


def broken(message: str) -> Callable[[type], type]:
    """Registers a model or a configuration that breaks one rule, with what is to be said of it."""

    def register(cls: type) -> type:
        BROKEN.append((message, cls))
        return cls

    return register


BROKEN: list[tuple[str, type]] = []


@broken("the configuration NoSection is no ModelSection")
class NoSection(BaseModel):
    name: str = "plain"


@broken("the configuration NoName has no default for `name`")
class NoName(ModelSection):
    pass


@broken(r"the configuration AnyName takes any name; declare it as name: Literal\['plain'\] = 'plain'")
class AnyName(ModelSection):
    name: str = "plain"


@broken("the configuration TakesAll takes settings that it does not have")
class TakesAll(PlainConfig):
    model_config = ConfigDict(extra="allow")


@broken("the configuration OneWay is another one after it was written to YAML and read again")
class OneWay(PlainConfig):
    width: float = 0.5

    @field_serializer("width")
    def _rounded(self, value: float) -> int:
        return round(value)


@broken(r"building it fails \(ValueError: no room\)")
class NotBuilt(Plain):
    def __init__(self, config: PlainConfig, shape: DataShape) -> None:
        raise ValueError("no room")


@broken("is built as a Linear, which is no Model")
class NoModel:
    def __new__(cls, config: PlainConfig, shape: DataShape) -> Any:
        return nn.Linear(2, 2)


@broken("is fed with Sessions, and this check has a UserBatch only")
class OtherBatches(Plain):
    class Sessions(Batch):
        pass

    batch_type = Sessions


@broken("has no table 'item', which is what is ranked")
class NoItems(Plain):
    def tables(self) -> list[TableSpec]:
        return [TableSpec("items", self.shape.num_item_rows, self.dim, id_map="items", padding_row=0)]


@broken("rows of its table 'item' is 36 and not 37")
class TooFewRows(Plain):
    def tables(self) -> list[TableSpec]:
        return [TableSpec("item", self.shape.num_item_rows - 1, self.dim, id_map="items", padding_row=0)]


@broken("padding_row of its table 'item' is None and not 0")
class NoPadding(Plain):
    def tables(self) -> list[TableSpec]:
        return [TableSpec("item", self.shape.num_item_rows, self.dim, id_map="items")]


@broken("id_map of its table 'item' is None and not 'items'")
class NoIdMap(Plain):
    def tables(self) -> list[TableSpec]:
        return [TableSpec("item", self.shape.num_item_rows, self.dim, padding_row=0)]


@broken("two of its tables have one name")
class TwoTables(Plain):
    def tables(self) -> list[TableSpec]:
        return 2 * super().tables()


@broken("its table 'user' has 5 rows, not one for each user")
class TooFewUsers(Plain):
    def tables(self) -> list[TableSpec]:
        return [*super().tables(), TableSpec("user", 5, self.dim, id_map="users")]


@broken("its scorer 'taste' is none that there is")
class NoScorer(Plain):
    scorer = "taste"


@broken("its use 'user' is of a table 'user', which is none of its own")
class NoSuchTable(Plain):
    def uses(self, batch: UserBatch) -> Uses:
        return {**super().uses(batch), "user": ("user", batch.user)}


@broken("the ids of its use 'history' are torch.int32 and not int64")
class ShortIds(Plain):
    def uses(self, batch: UserBatch) -> Uses:
        return {"history": ("item", batch.history.int())}


@broken(r"the ids of its use 'history' are \[6, 7\]: the samples do not come first")
class SamplesLast(Plain):
    def uses(self, batch: UserBatch) -> Uses:
        return {"history": ("item", batch.history.T)}


@broken("the ids of its use 'user' are not all rows of table 'item'")
class RowsThatAreNot(Plain):
    def uses(self, batch: UserBatch) -> Uses:
        return {**super().uses(batch), "user": ("item", batch.user + 1000)}


@broken("looks up other things where users are only ranked for")
class LooksUpTargets(Plain):
    def uses(self, batch: UserBatch) -> Uses:
        seen = super().uses(batch)
        return seen if batch.target is None else {**seen, "target": ("item", batch.target)}


@broken("encode gives a Tensor and not an Encoded")
class BareTensor(Plain):
    def encode(self, rows: Rows, batch: UserBatch) -> Any:
        return super().encode(rows, batch).queries


@broken(r"the queries of full histories are \[4, 12\] and not \[4, 3, 4\]")
class Flat(Plain):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        return Encoded(super().encode(rows, batch).queries.flatten(1))


@broken("the queries of several samples are not all finite")
class DividesByNothing(Plain):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        length = (batch.history != NO_ROW).sum(1, keepdim=True)
        return Encoded(self.interests(rows["history"].sum(1) / length, batch))


@broken(r"a batch of no samples fails \(RuntimeError: .*0 elements")
class NotOfNobody(Plain):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        queries = self.maps(self.mean(rows, batch)).view(len(batch), self.num_interests, -1)
        return Encoded(queries + 0 * self.age.weight.sum())


@broken(r"its penalty 'size' is \[4\] and not a number")
class PenaltyOfEach(Plain):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        queries = super().encode(rows, batch).queries
        return Encoded(queries, {"size": queries.square().sum((1, 2))})


@broken(r"the routing of full histories is \[4, 6\] and not \[4, 3, 6\]")
class OneRouting(Plain):
    tells_routing = True

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        return Encoded(super().encode(rows, batch).queries, routing=torch.ones(batch.history.shape))


@broken("tells_routing is not whether encode gives a routing")
class SilentRouting(Plain):
    tells_routing = True


@broken("its queries depend on what stands at padded places")
class NoMask(Plain):
    def mean(self, rows: Rows, batch: UserBatch) -> Tensor:
        return rows["history"].mean(1)


@broken("its queries differ from call to call in eval mode")
class DropoutAlways(Plain):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        return Encoded(nn.functional.dropout(super().encode(rows, batch).queries, 0.5))


@broken("its queries depend on the samples that they share a batch with")
class Centred(Plain):
    def mean(self, rows: Rows, batch: UserBatch) -> Tensor:
        mean = super().mean(rows, batch)
        return mean - mean.mean(0)


@broken("its queries are not in the order of samples")
class ByPlaceInTheBatch(Plain):
    """Right for a batch of one sample, and otherwise for a batch in which the samples stand where they stand."""

    places: ClassVar[list[list[int]]] = []

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        queries = super().encode(rows, batch).queries
        if len(batch) == 7 and self.places and batch.history.tolist() != self.places:
            queries = queries.roll(1, 0)
        elif len(batch) == 7:
            self.places[:] = batch.history.tolist()
        return Encoded(queries)


@broken("its queries of a sample are not in the order of batch.position")
class OtherOrder(Causal):
    def at(self, means: Tensor, position: Tensor) -> Tensor:
        return super().at(means, position.sort(1).values)


@broken("is causal, but its queries depend on what comes after their place")
class LooksAhead(Causal):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        mean = self.mean(rows, batch)[:, None].expand(-1, batch.position.shape[1], -1)
        return Encoded(self.maps(mean + self.age(batch.attributes[:, :1])).view(-1, self.num_interests, self.dim))


@broken("its queries depend on the targets")
class Cheats(Plain):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        queries = super().encode(rows, batch).queries
        return Encoded(queries if batch.target is None else queries + batch.target[..., None])


@broken(r"a batch of users that are only ranked for fails \(TypeError")
class NeedsTargets(Plain):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        return Encoded(super().encode(rows, batch).queries + 0 * batch.target[..., None])  # type: ignore[index]


@broken("its parameter spare gets no gradient from full histories")
class Spare(Plain):
    def __init__(self, config: PlainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        self.spare = nn.Parameter(torch.ones(3))


@broken("its parameter age.weight gets no gradient from no samples")
class NoGraphOfNobody(Plain):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        if len(batch):
            return super().encode(rows, batch)
        return Encoded(self.maps(rows["history"].sum(1)).view(0, self.num_interests, self.dim))


@broken(r"the backward pass of no samples fails \(RuntimeError: .*does not require grad")
class NoGraphAtAll(Plain):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        queries = super().encode(rows, batch).queries
        return Encoded(queries if len(batch) else torch.zeros(queries.shape))


@broken("the gradient of its parameter age.weight from several samples is not finite")
class RootOfNothing(Plain):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        known = (batch.history != NO_ROW).any(1)[:, None, None]
        queries = super().encode(rows, batch).queries * known
        return Encoded(queries / (1 + queries.square().sum(-1, keepdim=True).sqrt()))


@broken("the gradient of the rows of its use 'history' from several samples is not finite")
class LengthOfNothing(Plain):
    def mean(self, rows: Rows, batch: UserBatch) -> Tensor:
        mean = super().mean(rows, batch)
        return mean / (1 + mean.square().sum(-1, keepdim=True).sqrt())


@broken("has no parameters, and the optimizer of the dense network needs some")
class NoParameters(Plain):
    def __init__(self, config: PlainConfig, shape: DataShape) -> None:
        Model.__init__(self)
        self.dim, self.num_interests, self.shape = config.dim, 1, shape

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        return Encoded(self.mean(rows, batch)[:, None])

    def attribute_weights(self) -> dict[str, str]:
        return {}


@broken("its parameter maps.bias starts otherwise when it is built again")
class OwnGenerator(Plain):
    starts = itertools.count()

    def __init__(self, config: PlainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        nn.init.constant_(self.maps.bias, float(next(self.starts)))


@broken("its buffer steps would be in no checkpoint: make it persistent=False")
class Counts(Plain):
    def __init__(self, config: PlainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        self.register_buffer("steps", torch.zeros(()))


@broken("another one with the same parameters gives other queries, so a checkpoint would not hold all of it")
class DrawnAtTheStart(Plain):
    def __init__(self, config: PlainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        self.drawn = torch.randn(config.dim)

    def mean(self, rows: Rows, batch: UserBatch) -> Tensor:
        return super().mean(rows, batch) * self.drawn


@broken("another one with the same parameters gives other queries")
class RunningMean(Plain):
    """As batch normalisation does, in a buffer that is in no state dictionary."""

    running: Tensor

    def __init__(self, config: PlainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        self.register_buffer("running", torch.zeros(config.dim), persistent=False)

    def mean(self, rows: Rows, batch: UserBatch) -> Tensor:
        mean = super().mean(rows, batch)
        if self.training and len(batch):
            self.running.lerp_(mean.detach().mean(0), 0.5)
        return mean - self.running


@broken(r"attribute_weights\(\) names 'age.weights' for 'age', which is none of its parameters")
class NoSuchParameter(Plain):
    def attribute_weights(self) -> dict[str, str]:
        return {"age": "age.weights"}


@broken(r"attribute_weights\(\) names 'age.weight' for 'height', which is no attribute of the data")
class NoSuchAttribute(Plain):
    def attribute_weights(self) -> dict[str, str]:
        return {"height": "age.weight"}


@broken(r"attribute_weights\(\) names 'maps.weight' for 'age', which has 12 rows for 3 values")
class NotByValue(Plain):
    def attribute_weights(self) -> dict[str, str]:
        return {"age": "maps.weight"}


@broken(r"building it on the meta device fails \(RuntimeError")
class ReadsItsWeights(Plain):
    def __init__(self, config: PlainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        self.largest = float(self.maps.weight.detach().max())


@broken(r"attribute_weights\(\) differs from one to another")
class OnlyTheFirst(Plain):
    numbers = itertools.count()

    def __init__(self, config: PlainConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        self.number = next(self.numbers)

    def attribute_weights(self) -> dict[str, str]:
        return {} if self.number else super().attribute_weights()


@pytest.mark.parametrize(("message", "cls"), BROKEN, ids=[cls.__name__ for _, cls in BROKEN])
def test_what_a_model_breaks_is_told_in_a_sentence(message: str, cls: type) -> None:
    registered = Registered(cls, Plain) if issubclass(cls, BaseModel) else Registered(PlainConfig, cls)
    with pytest.raises(AssertionError, match=message) as caught:
        check_model(registered)
    assert "\n" not in str(caught.value)
