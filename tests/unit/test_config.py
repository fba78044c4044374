from pathlib import Path

import pytest

from eupmim_dist.config.load import CHOICES, dump_config, fields, load_config, parse_config
from eupmim_dist.config.registry import names
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError

CONFIGS = sorted(
    path for path in (Path(__file__).parents[2] / "configs").rglob("*.yaml") if path.parent.name != "accelerate"
)


def test_defaults_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: {learning_rate: 1e-2}\nmodel: {dim: 16}\n")
    config = load_config(file, ["train.l2=1e-6", "model.num_interests=5", "data.dir=/x/y", "world_size=3"])
    assert config.train.learning_rate == 0.01
    assert config.train.l2 == 1e-6
    assert (config.model.name, config.model.dim, config.model.num_interests) == ("eupmim", 16, 5)
    assert config.data.dir == Path("/x/y")
    assert config.world_size == 3


@pytest.mark.parametrize("overrides", [[], ["model.name=comirec_dr"], ["model.extractor=capsule", "seed=4"]])
def test_dump_and_load_round_trip(tmp_path: Path, overrides: list[str]) -> None:
    config = load_config(None, overrides)
    file = tmp_path / "c.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.lerning_rate=1"], "unknown key train.lerning_rate; did you mean train.learning_rate?"),
        (["model.dimm=1"], "unknown key model.dimm; did you mean model.dim?"),
        (["xyz=1"], "unknown key xyz; `eupmim-dist config show` lists the keys"),
        (
            ["model.name=eupmin"],
            "model.name: 'eupmin' is no model; did you mean eupmim?; choose from .*comirec_dr, .*eupmim",
        ),
        (["model.name=comirec"], "model.name: comirec is now called comirec_dr"),
        (["task.name=x"], "task.name: 'x' is no task; choose from every_position, next_item"),
        (["data.history_length=5"], "data.history_length is now called task.history_length"),
        (["train.num_negatives=5"], "train.num_negatives is now called objective.num_negatives"),
        (["model.hard_readout=false"], "model.hard_readout is now called objective.readout"),
        (["model=3"], "model: "),
        (["objective.name=full_softmax", "objective.num_negatives=3"], "is a key of objective sampled_softmax"),
        (["train.weight_decay=0.1"], "weight_decay is served by optimizer adamw only"),
        (["objective.candidates=in_batch", "objective.num_negatives=9"], "num_negatives is served by candidates unif"),
        (["task.name=every_position", "task.num_positions=99"], "num_positions 99 exceeds history_length 50"),
        (["objective.log_q=false"], "log_q false is served by candidates in_batch and mixed only"),
        (["train.l2=-1"], r"train.l2: .*\(got -1\)"),
        (["train.max_steps=many"], r"train.max_steps: .*\(got 'many'\)"),
        (["model.num_heads=5"], "num_heads 5 must divide dim 32"),
        (["model.profile=false"], "set model.profile_attention=none too"),
        (["evaluation.metric=recal@10"], "evaluation.metric: .*recal@10"),
        (["evaluation.protocol=loose"], "evaluation.protocol: .*'strict', 'comirec' or 'seed'"),
        (["model.name=comirec_dr", "model.num_levels=2"], "model.num_levels is a key of model eupmim"),
        (["seed.x=1", "seed=2"], None),
        (["seed=2", "seed.x=1"], "seed is a value, not a section"),
        (["train"], "write it as key=value"),
        (["train.l2=[1"], "not valid YAML"),
    ],
)
def test_mistakes_name_the_key_and_the_mend(overrides: list[str], message: str | None) -> None:
    if message is None:
        assert load_config(None, overrides).seed == 2
        return
    with pytest.raises(UserError, match=message.replace("?", r"\?").replace("`", "`")):
        load_config(None, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [1", r"c\.yaml:\d+: not valid YAML"),
        ("- 1", r"c\.yaml: a configuration is a mapping"),
        ("\x00", "c.yaml"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: no such configuration file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in CHOICES for name in names(kind)])
def test_every_key_is_explained(kind: str, name: str) -> None:
    keys = fields(load_config(None, [f"{kind}.name={name}"]))
    assert not [key for key, field in keys if not field.description]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_shipped_config_loads_and_says_how_to_run_it(file: Path) -> None:
    load_config(file)
    header = file.read_text().split("\n\n")[0]
    assert header.startswith("#")
    assert "eupmim-dist" in header


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("")
    assert load_config(tmp_path / "c.yaml") == Config() == parse_config({}, "nothing")


def test_a_mistake_is_blamed_on_where_it_was_made(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train:\n  max_steps: 0\n")
    with pytest.raises(UserError, match=rf"^{file}: train.max_steps"):
        load_config(file, ["seed=1"])
    file.write_text("train:\n  max_steps: 5\n")
    with pytest.raises(UserError, match=rf"^{file} with overrides: seed"):
        load_config(file, ["seed=x"])
    with pytest.raises(UserError, match=r"^overrides: seed"):
        load_config(None, ["seed=x"])


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train:\n  max_steps: 5\n  max_steps: 6\n")
    with pytest.raises(UserError, match=rf"^{file}:3: .*key max_steps is given twice"):
        load_config(file)
