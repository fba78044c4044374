"""The registries as another package meets them: what it may do, and how what it must not do is told."""

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import yaml
from pydantic import BaseModel, Field, create_model, field_validator
from torch import Tensor, nn

from eupmim_dist.config import registry
from eupmim_dist.config.load import dump_config, fields, load_config, origins, parse_config
from eupmim_dist.config.registry import KINDS, Registered, built_in, find, names
from eupmim_dist.config.schema import Config, ModelSection, ObjectiveSection, ScorerSection, TaskSection
from eupmim_dist.data.batch import Batch, UserBatch
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.evaluation.scorers.interface import baselines, check_baselines
from eupmim_dist.models.interface import DataShape, Encoded, Model, Rows, TableSpec, Uses
from eupmim_dist.models.sasrec import SASRec
from eupmim_dist.models.youtube_dnn import YouTubeDNN
from eupmim_dist.objectives.interface import Candidates
from eupmim_dist.objectives.sampled_softmax import Sampled, SampledSoftmax, SampledSoftmaxConfig
from eupmim_dist.recommending import recommendations
from eupmim_dist.tasks.interface import Setting, Task
from eupmim_dist.tasks.next_item import NextItem, NextItemConfig
from tests.e2e.test_mistakes import check_line, command_line
from tests.runs import config_of, start
from tests.stores import small_store

pytestmark = pytest.mark.usefixtures("one_thread")
Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Registers an object of this module, or what a text names, as an entry point of a package."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: [point for point in points if point.group == group])

    def add(name: str, what: Any, kind: str = "model", package: str = "toys") -> None:
        if not isinstance(what, str):
            attribute = f"INSTALLED_{len(points)}"
            monkeypatch.setattr(sys.modules[__name__], attribute, what, raising=False)
            what = f"{__name__}:{attribute}"
        point = EntryPoint(name, what, KINDS[kind].group)
        vars(point).update(dist=SimpleNamespace(name=package, version="1.0"))
        points.append(point)
        registry._plugins.cache_clear()

    registry._plugins.cache_clear()
    yield add
    registry._plugins.cache_clear()


class ToyConfig(ModelSection):
    name: Literal["toy"] = "toy"
    """A toy."""
    dim: int = 8
    """D."""
    num_interests: int = 1
    """K."""
    hidden: tuple[int, ...] = ()
    """Of YouTubeDNN."""
    attributes: bool = False
    """Of YouTubeDNN."""
    code: str = Field("a", pattern="^a+$")
    """Some letters a."""
    size: Literal[1, 2] = 1
    """One of two numbers."""


class Toy(YouTubeDNN):
    pass


TOY = Registered(ToyConfig, Toy)


def test_the_groups_are_those_of_the_design() -> None:
    assert {kind: entry.group for kind, entry in KINDS.items()} == {
        "model": "eupmim_dist.models",
        "task": "eupmim_dist.tasks",
        "objective": "eupmim_dist.objectives",
        "scorer": "eupmim_dist.scorers",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_of_this_package_is_an_implementation_of_that_name(kind: str) -> None:
    for name in built_in(kind):
        assert find(kind, name).config().name == name
        assert registry.origin(kind, name) is None


@pytest.mark.parametrize(
    "name", ["toy-model", "Toy.Model", "TOY", "model 2", "interface", "spiel\N{LATIN SMALL LETTER SHARP S}"]
)
def test_any_text_is_a_name(tmp_path: Path, install: Install, name: str) -> None:
    Named = create_model("Named", __base__=ToyConfig, name=(str, name))
    install(name, Registered(Named, Toy))
    config = load_config(None, [f"model.name={name}", "model.code=aa"])
    assert type(config.model) is Named
    (tmp_path / "c.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "c.yaml") == config
    assert names("model")[-1] == name


def test_a_configuration_with_a_section_of_another_package_is_a_configuration(tmp_path: Path, install: Install) -> None:
    install("toy", TOY)
    config = Config(model={"name": "toy", "code": "aaa"})
    assert config.model == ToyConfig(code="aaa")
    assert config != Config(model={"name": "toy"})
    for same in (
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
        Config(**config.model_dump()),
        parse_config(yaml.safe_load(dump_config(config)), "dump"),
        config.model_copy(),
        Config(model=ToyConfig(code="aaa")),
    ):
        assert same == config
        assert type(same.model) is ToyConfig
    assert type(Config(model=ModelSection(name="toy")).model) is ToyConfig
    assert ("model.code", "Some letters a.") in [(key, field.description) for key, field in fields(config)]


def test_many_plugins_are_listed_without_importing_any(install: Install) -> None:
    for number in range(50):
        install(f"toy{number}", f"no_module_{number}:MODEL", package=f"toys{number}")
    assert len(names("model")) == len(built_in("model")) + 50
    assert load_config(None, ["model.name=sasrec"]).model.name == "sasrec"
    with pytest.raises(UserError, match=r"unknown key model.dimm; did you mean model.dim\?"):
        load_config(None, ["model.name=sasrec", "model.dimm=3"])
    with pytest.raises(UserError, match=r"'toy50' is no model; did you mean toy5\?; choose from comirec_dr, .*, toy49"):
        load_config(None, ["model.name=toy50"])
    with pytest.raises(UserError, match="plug-in toys7: its model 'toy7'"):
        find("model", "toy7")


SOURCES = {
    "raise ImportError('needs libtoys.so')": r"\(ImportError: needs libtoys.so\); mend or uninstall it",
    "import no_such_package": r"\(ModuleNotFoundError: No module named 'no_such_package'\)",
    "1 / 0": r"\(ZeroDivisionError: division by zero\)",
    "import sys; sys.exit('needs a GPU')": r"\(SystemExit: needs a GPU\)",
    "def MODEL(:": r"\(SyntaxError: .*invalid syntax.*\)",
    "raise ValueError('of\\ntwo lines')": r"\(ValueError: of two lines\)",
    "from eupmim_dist.config.registry import find; MODEL = find('model', 'toy')": "circular import",
    "": "has no attribute 'MODEL'",
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source[:20] or "empty")
def test_a_plugin_that_cannot_be_imported(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "toy_of_test.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    install("toy", "toy_of_test:MODEL")
    with pytest.raises(UserError, match=SOURCES[source]) as caught:
        load_config(None, ["model.name=toy"])
    sys.modules.pop("toy_of_test", None)
    assert str(caught.value).startswith(
        "overrides: plug-in toys: its model 'toy' (toy_of_test:MODEL) cannot be imported"
    )
    assert "\n" not in str(caught.value)
    assert load_config().model.name == "eupmim"  # who does not use it is not disturbed


def test_a_plugin_may_use_the_configuration_while_it_is_imported(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        "from eupmim_dist.config.load import load_config",
        "DIM = load_config(None, ['model.name=sasrec']).model.dim",
    )
    (tmp_path / "toy_cycle.py").write_text("\n".join([*lines, f"from {__name__} import TOY as MODEL"]))
    monkeypatch.syspath_prepend(str(tmp_path))
    install("toy", "toy_cycle:MODEL")
    assert load_config(None, ["model.name=toy"]).model.name == "toy"
    del sys.modules["toy_cycle"]


class NoDefault(ModelSection):
    pass


class NoSection(BaseModel):
    name: str = "toy"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (__name__, r"is a module; its entry point must name a Registered"),
        (Toy, r"is a class Toy; its entry point must name a Registered"),
        (Registered(dict, Toy), r"has a configuration that is no ModelSection; derive it from that"),
        (Registered(NoSection, Toy), r"has a configuration that is no ModelSection"),
        (Registered(NextItemConfig, NextItem), r"has a configuration that is no ModelSection"),
        (Registered(NoDefault, Toy), r"the `name` of its NoDefault has no default; it must be 'toy' too"),
        (find("model", "sasrec"), r"the `name` of its SASRecConfig is 'sasrec'; it must be 'toy' too"),
    ],
    ids=range(7),
)
def test_an_entry_point_that_is_no_model(install: Install, what: Any, message: str) -> None:
    install("toy", what)
    with pytest.raises(UserError, match=r"^plug-in toys: its model 'toy' \(.*\):? " + message):
        find("model", "toy")


def test_a_name_that_is_taken_is_refused_at_once(install: Install) -> None:
    install("sasrec", TOY)
    taken = (
        r"plug-in toys: its model 'sasrec' \(.*\) has a name that is taken by eupmim_dist itself; rename it .*models"
    )
    for attempt in (load_config, Config, lambda: names("model"), lambda: find("model", "mind")):
        with pytest.raises(UserError, match=taken):
            attempt()


def test_a_name_of_two_plugins_is_refused_at_once(install: Install) -> None:
    install("toy", TOY)
    install("toy", TOY, package="other-toys")
    with pytest.raises(UserError, match=r"plug-in other-toys: its model 'toy' .* taken by toys too"):
        load_config()


def test_a_name_may_be_that_of_another_kind(install: Install) -> None:
    install("toy", TOY)
    install("toy", "nowhere:TASK", kind="task", package="other-toys")
    assert load_config(None, ["model.name=toy"]).model.name == "toy"


@pytest.mark.parametrize("name", ["1", "null", "on", "[toy]", "{a: b}", "1.5"])
def test_what_is_no_text_is_no_name(name: str) -> None:
    with pytest.raises(UserError, match=r"^overrides: model.name: .* is no name; put one into quotes"):
        load_config(None, [f"model.name={name}"])


class Required(ToyConfig):
    width: int
    """Without a default."""


class Picky(ToyConfig):
    @field_validator("code")
    @classmethod
    def _known(cls, value: str) -> str:
        return {"a": "a"}[value]


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (ToyConfig, ["model.dimm=3"], r"unknown key model.dimm; did you mean model.dim\?"),
        (
            ToyConfig,
            ["model.num_levels=3"],
            "model.num_levels belongs to model eupmim: set model.name=eupmim, or leave it out",
        ),
        (ToyConfig, ["model.code=b"], "model.code: 'b' does not fit: some letters a."),
        (ToyConfig, ["model.size=3"], r"model.size: input should be 1 or 2 \(got 3\)"),
        (ToyConfig, ["model.name=toi"], r"model.name: 'toi' is no model; did you mean toy\?"),
        (ToyConfig, ["model.name=Toy"], r"model.name: 'Toy' is no model; did you mean toy\?"),
        (ToyConfig, ["model={1: 2, name: toy}"], "unknown key model.1"),
        (Required, [], "no key model.width"),
        (Required, ["model.dimm=3", "model.width=3"], r"unknown key model.dimm; did you mean model.dim\?"),
        (Picky, ["model.code=aa"], r"model: Picky cannot check its settings \(KeyError: 'aa'\)"),
    ],
)
def test_a_section_with_a_mistake(install: Install, config: type, overrides: list[str], message: str) -> None:
    install("toy", Registered(config, Toy))
    with pytest.raises(UserError, match=message):
        load_config(None, ["model.name=toy", *overrides])


def test_a_baseline_that_cannot_be_imported_disturbs_no_other(install: Install) -> None:
    class Section(ScorerSection):
        name: Literal["alphabet"] = "alphabet"

    install("broken", "nowhere:SCORER", kind="scorer")
    install("alphabet", Registered(Section, object), kind="scorer")
    assert baselines() == [
        "association",
        "cooccurrence",
        "ease",
        "history_paths",
        "next_id",
        "paths",
        "popularity",
        "alphabet",
    ]
    check_baselines(["ease", "alphabet"])
    with pytest.raises(UserError, match="plug-in toys: its scorer 'broken'"):
        check_baselines(["broken"])
    for name in ("interests", "random"):
        with pytest.raises(UserError, match=f"baselines {name}: choose from association, .*, alphabet"):
            check_baselines([name])


# What does not fit together: found before a run begins, and told in one line.


class UnknownTable(Toy):
    def uses(self, batch: UserBatch) -> Uses:
        return {**super().uses(batch), "user": ("users", batch.user)}


class TakenUse(Toy):
    def uses(self, batch: UserBatch) -> Uses:
        return {**super().uses(batch), "candidates": ("item", batch.user)}


class ShortIds(Toy):
    def uses(self, batch: UserBatch) -> Uses:
        return {"history": ("item", batch.history.int())}


class NoSamples(Toy):
    def uses(self, batch: UserBatch) -> Uses:
        return {**super().uses(batch), "all": ("item", torch.arange(9))}


class FlatQueries(Toy):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        return Encoded(super().encode(rows, batch).queries[:, 0])


class BareTensor(Toy):
    def encode(self, rows: Rows, batch: UserBatch) -> Any:
        return super().encode(rows, batch).queries


class WrongCode(Toy):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        return Encoded(rows["histories"])


class WantsTargets(Toy):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        return Encoded(super().encode(rows, batch).queries + 0 * batch.target.sum())  # type: ignore[union-attr]


class TakenPenalty(Toy):
    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        queries = super().encode(rows, batch).queries
        return Encoded(queries, {"l2": queries.square().sum()})


class OtherRows(Toy):
    def tables(self) -> list[TableSpec]:
        return [replace(super().tables()[0], rows=5)]


class NoTable(Toy):
    def tables(self) -> list[TableSpec]:
        return []


class Rates(Toy):
    def learning_rates(self):
        return {"biases": 30.0}


class Buffer(Toy):
    def __init__(self, config: Any, shape: DataShape) -> None:
        super().__init__(config, shape)
        self.norm = nn.BatchNorm1d(config.dim)


class NoParameters(Toy):
    def __init__(self, config: Any, shape: DataShape) -> None:
        super().__init__(config, shape)
        del self.layers


class NoScorer(Toy):
    scorer = "taste"


class NoReadout(Toy):
    readout = "softly"


class Raises(Toy):
    def __init__(self, config: Any, shape: DataShape) -> None:
        raise FileNotFoundError("weights.bin")


class Half(Model):
    def tables(self) -> list[TableSpec]:
        return []

    def uses(self, batch: UserBatch) -> Uses:
        return {}


class Sessions(Batch):
    pass


class OfSessions(Toy):
    batch_type = Sessions


MODELS = [
    (UnknownTable, "model toy: its use 'user' is of a table users, which the model does not have; there are item"),
    (TakenUse, "model toy: its use 'candidates' has the name of one of objective sampled_softmax; call it otherwise"),
    (ShortIds, "model toy: the ids of its use 'history' are int32; make them a tensor of int64"),
    (NoSamples, r"model toy: the ids of its use 'all' are \[9\] for 2 samples; put the samples first"),
    (FlatQueries, r"model toy: its queries are \[2, 8\] and not \[2, 1, 8\]: one for each of the 2 predictions"),
    (BareTensor, "model toy: encode gives a Tensor; make it an Encoded"),
    (WrongCode, r"model toy: failed when it was tried \(KeyError: 'histories'\); `eupmim-dist --debug` shows where"),
    (WantsTargets, r"model toy: failed when it was tried \(AttributeError: 'NoneType' object has no attribute 'sum'"),
    (TakenPenalty, "model toy: its penalty 'l2' has a name that is taken"),
    (
        OtherRows,
        r"model toy: its table item has rows, dim, padding_row and id_map \(5, 8, 0, 'items'\) and not \(31, 8",
    ),
    (NoTable, "model toy: has no table item, which is what is ranked"),
    (Rates, "model toy: its learning rate of biases, 30.0 times the others', is of no parameter or not above 0"),
    (Buffer, "model toy: its buffer norm.num_batches_tracked would be in no checkpoint"),
    (NoParameters, "model toy: has no parameters, and the optimizer of the dense network needs some"),
    (
        NoScorer,
        "model toy: is ranked by a scorer 'taste', which there is not; choose from association, beams, cooccurrence",
    ),
    (NoReadout, "objective.readout: NoReadout is read out by 'softly', which there is not; choose from hard, mean"),
    (
        Raises,
        r"plug-in toys: its model 'toy' \(.*\) cannot be built \(FileNotFoundError: weights.bin\); `eupmim-dist --d",
    ),
    (Half, r"cannot be built \(TypeError: Can't instantiate abstract class Half with abstract method encode\)"),
    (lambda config, shape: nn.Linear(2, 2), r"plug-in toys: its model 'toy' \(.*\) builds Linear, which is no Model"),
    (OfSessions, "model toy: is fed with Sessions, and task next_item gives UserBatch; choose another task.name"),
]


class ToyObjectiveConfig(ObjectiveSection):
    name: Literal["toy"] = "toy"
    """A toy."""


class ToyObjective(SampledSoftmax):
    def __init__(self, config: ToyObjectiveConfig, model: Any, task: Task) -> None:
        super().__init__(SampledSoftmaxConfig(), model, task)


class LooksElsewhere(ToyObjective):
    def draw(self, batch: UserBatch, step: int) -> Any:
        @dataclass(frozen=True)
        class Elsewhere(Candidates):
            def uses(self) -> Uses:
                return {"prices": ("price", batch.user)}

        return Elsewhere()


class WithWeights(ToyObjective):
    def __init__(self, config: ToyObjectiveConfig, model: Any, task: Task) -> None:
        super().__init__(config, model, task)
        self.temperature = nn.Parameter(torch.ones(()))


class OfSessionsOnly(ToyObjective):
    batch_type = Sessions


class Unfed(ToyObjective):
    def draw(self, batch: UserBatch, step: int) -> Sampled:
        return Sampled(batch.rating)  # type: ignore[attr-defined]


class OfEach(ToyObjective):
    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        return {"loss": arguments[0].queries.sum((1, 2))}


class TakenPart(ToyObjective):
    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        return {"norm": arguments[0].queries.sum()}


class Misread(ToyObjective):
    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        return {"loss": arguments[1]["prices"].sum()}


OBJECTIVES = [
    (OfEach, r"objective toy: its part 'loss' is \[2\] and not a number"),
    (TakenPart, "objective toy: its part 'norm' has a name that is taken"),
    (Misread, r"objective toy: failed when it was tried \(KeyError: 'prices'\)"),
    (LooksElsewhere, "objective toy: its use 'prices' is of a table price, which the model does not have"),
    (WithWeights, "objective toy: its parameter temperature would not be trained; weights are a model's matter"),
    (OfSessionsOnly, "objective toy: is fed with Sessions, and task next_item gives UserBatch; choose another task"),
    (
        Unfed,
        r"objective toy: failed when it was tried \(AttributeError: 'UserBatch' object has no attribute 'rating'\)",
    ),
    (lambda *_: None, r"plug-in toys: its objective 'toy' \(.*\) builds NoneType, which is no Objective"),
]


class ToyTaskConfig(TaskSection):
    name: Literal["toy"] = "toy"
    """A toy."""


class ToyTask(NextItem):
    def __init__(self, config: Any, setting: Setting) -> None:
        super().__init__(NextItemConfig(history_length=config.history_length), setting)


class Unlabelled(ToyTask):
    def sample(self, step: int) -> UserBatch:
        return replace(super().sample(step), target=None)


class ManyPredictions(ToyTask):
    def sample(self, step: int) -> UserBatch:
        batch = super().sample(step)
        return replace(batch, position=batch.position.expand(-1, 3))


class OtherBatches(ToyTask):
    def sample(self, step: int) -> Any:
        @dataclass(frozen=True)
        class Visits(Batch):
            shop: Tensor

            def __len__(self) -> int:
                return len(self.shop)

        return Visits(8, 8, torch.zeros(8))


class NoBatches(ToyTask):
    def sample(self, step: int) -> Any:
        return {"user": [1, 2]}


TASKS = [
    (
        Unlabelled,
        r"objective sampled_softmax: failed when it was tried \(AssertionError: a training batch has targets\)",
    ),
    (ManyPredictions, "task toy: asks for 3 predictions of a sample, and model youtube_dnn is not causal"),
    (OtherBatches, "model youtube_dnn: is fed with UserBatch, and task toy gives Visits; choose another task.name"),
    (NoBatches, r"task toy: failed when it was tried \(AttributeError: 'dict' object has no attribute 'samples'\)"),
    (lambda *_: 3, r"plug-in toys: its task 'toy' \(.*\) builds int, which is no Task"),
]
SECTIONS = {"model": ToyConfig, "objective": ToyObjectiveConfig, "task": ToyTaskConfig}
MISTAKES = [
    (kind, made, message)
    for kind, cases in (("model", MODELS), ("objective", OBJECTIVES), ("task", TASKS))
    for made, message in cases
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    small_store(root / "store")
    config = config_of(root, model={"name": "youtube_dnn", "dim": 8})
    (root / "small.yaml").write_text(dump_config(config))
    return root


@pytest.mark.parametrize(("kind", "made", "message"), MISTAKES, ids=[f"{k}-{m.__name__}" for k, m, _ in MISTAKES])
def test_parts_that_do_not_fit(
    place: Path,
    install: Install,
    kind: str,
    made: Any,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    install("toy", Registered(SECTIONS[kind], made), kind)
    section = {"name": "toy", "history_length": 6} if kind == "task" else {"name": "toy"}
    config = load_config(place / "small.yaml").model_dump() | {kind: section}
    with pytest.raises(UserError, match=message):
        start(Config(**config))
    monkeypatch.chdir(place)
    (place / "toy.yaml").write_text(dump_config(Config(**config)))
    assert command_line("train --config toy.yaml --cpu --run-dir new") == 2
    check_line(capfd.readouterr().err, message)
    assert not (place / "new").exists()


@pytest.mark.parametrize(("kind", "made"), [("model", Toy), ("objective", ToyObjective), ("task", ToyTask)])
def test_parts_that_fit(place: Path, install: Install, kind: str, made: Any) -> None:
    install("toy", Registered(SECTIONS[kind], made), kind)
    section = {"name": "toy", "history_length": 6} if kind == "task" else {"name": "toy"}
    config = Config(**load_config(place / "small.yaml").model_dump() | {kind: section})
    run = start(config)
    assert run.model.training
    assert origins(config) == {"toys": "1.0"}


def test_a_model_that_is_not_ranked_by_interests_is_evaluated_but_not_recommended_from(
    place: Path, install: Install
) -> None:
    class ByPopularity(Toy):
        scorer = "popularity"

    install("toy", Registered(ToyConfig, ByPopularity))
    run = start(Config(**load_config(place / "small.yaml").model_dump() | {"model": {"name": "toy"}}))
    assert evaluate_model(run, "test", "strict", [5]).users == 8
    with pytest.raises(UserError, match="model toy: is ranked by popularity, and items are recommended by interests"):
        recommendations(run, ["u1"], 5)


def test_a_causal_model_is_tried_with_all_its_predictions(place: Path, install: Install) -> None:
    class Section(ToyConfig):
        num_layers: int = 1
        num_heads: int = 1
        dropout: float = 0.0

    class FirstOnly(SASRec):
        def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
            return Encoded(super().encode(rows, batch).queries[:: batch.position.shape[1]])

    install("toy", Registered(Section, FirstOnly))
    config = load_config(place / "small.yaml").model_dump()
    config |= {"model": {"name": "toy"}, "task": {"name": "every_position", "history_length": 6}}
    with pytest.raises(UserError, match=r"^model toy: its queries are \[2, 1, 8\] and not \[12, 1, 8\]"):
        start(Config(**config))
