import json
from itertools import pairwise
from pathlib import Path

import pytest

from eupmim_dist.config.load import CHOICES, dump_config, fields, load_config, parse_config
from eupmim_dist.config.registry import names
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError, shown

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
        (["modle.name=sasrec"], "unknown key modle; did you mean model?"),
        (["train.clip_norm=.inf"], r"train\.clip_norm: .*finite number \(got inf\); null is for none"),
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
        (
            ["objective.name=full_softmax", "objective.num_negatives=3"],
            "objective.num_negatives belongs to objective sampled_softmax: set objective.name=sampled_softmax, or",
        ),
        (["train.weight_decay=0.1"], "weight_decay is served by optimizer adamw only"),
        (["objective.candidates=in_batch", "objective.num_negatives=9"], "num_negatives is served by candidates unif"),
        (["task.name=every_position", "task.num_positions=99"], "num_positions 99 exceeds history_length 50"),
        (["objective.log_q=false"], "log_q false is served by candidates in_batch and mixed"),
        (["train.l2=-1"], r"train.l2: .*\(got -1\)"),
        (["train.max_steps=many"], r"train.max_steps: .*\(got 'many'\)"),
        (["model.num_heads=5"], "num_heads 5 must divide dim 32"),
        (["model.profile=false"], "set model.profile_attention=none too"),
        (["model.profile=false", "model.profile_attention=none", "model.user_dropout=0.5"], "model.user_dropout=0 too"),
        (["model.extractor=causal", "model.dim=12"], "needs an even dim / num_heads, not 3"),
        (["evaluation.metric=recal@10"], "evaluation.metric: .*recal@10"),
        (
            ["evaluation.protocol=loose"],
            "evaluation.protocol: .*'elmrec_sequential', 'elmrec_direct' or 'elmrec_explanation'",
        ),
        (
            ["model.name=comirec_dr", "model.num_levels=2"],
            "model.num_levels belongs to model eupmim: set model.name=eupmim, or",
        ),
        (
            ["objective.discount=0.7"],
            "objective.discount belongs to objective full_softmax: set objective.name=full_softmax",
        ),
        (
            ["discount=0.7"],
            "key discount; objective.discount belongs to objective full_softmax: set objective.name=full_s",
        ),
        (
            ["model.loss=bce"],
            "unknown key model.loss; it is set by objective.name, such as objective.name=full_softmax",
        ),
        (["loss=bce"], "unknown key loss; it is set by objective.name"),
        (["learning_rate=1"], "unknown key learning_rate; it is tables.learning_rate or train.learning_rate"),
        (["train.dim=8"], "unknown key train.dim; it is model.dim"),
        (["train.batch_size=8"], "unknown key train.batch_size; it is set by train.global_batch_size"),
        (["seed.x=1", "seed=2"], None),
        (["seed=2", "seed.x=1"], "seed is a value, not a section"),
        (["train"], "write it as key=value"),
        (["train.l2=[1"], "not valid YAML"),
        (
            ["tables.replicate_below=true"],
            r"tables\.replicate_below: it is a number, not .*\(got true\)",
        ),
        (["evaluation.top_n=[10, true]"], r"evaluation\.top_n: it is a number, not switched on or off"),
        (["train.threads=false"], r"train\.threads: it is a number, not switched on or off"),
        (["tables.memory=on"], r"tables\.memory: input should be 'device' or 'host' \(got true\)"),
        (["seed=2", "train.prefetch=true"], None),
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


LONG = "k" * 100_000
BOMB = "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij"))
MERGES = "x0: &x0 {k: 1}\n" + "".join(f"x{i}: &x{i} {{<<: [{f'*x{i - 1}, ' * 9}]}}\n" for i in range(1, 20))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"c\.yaml:4: not valid YAML: more than 20 lists or mappings by \*name; write them out"),
        (MERGES, r"c\.yaml:4: not valid YAML: more than 20 lists or mappings"),
        ("seed: &a [*a]", r"c\.yaml:1: not valid YAML: \*a stands within itself"),
        ("seed: " + "[" * 100_000, r"c\.yaml:1: not valid YAML: nested more than 20 levels deep"),
        ("{a: " * 50_000, r"c\.yaml:1: not valid YAML: nested more than 20 levels deep"),
        ("".join(" " * n + "a:\n" for n in range(500)), r"c\.yaml:20: not valid YAML: nested more than 20"),
        ("seed: 1\n" * 40_000, r"c\.yaml: is larger than 256 kB, so it is no configuration"),
        ("seed: !!python/object/apply:os.getcwd []", r"c\.yaml:1: not valid YAML: could not determine a constructor"),
        (f"seed: !{LONG} 1", r"c\.yaml:1: not valid YAML: could not determine"),
        ("seed: !!int x", r"c\.yaml:1: not valid YAML: 'x' cannot be read as int"),
        ("seed: !!bool x", r"c\.yaml:1: not valid YAML: 'x' cannot be read as bool"),
        ("!!map [1]", r"c\.yaml:1: not valid YAML: expected a mapping node"),
        ("seed: 12345678901234567890", r"c\.yaml: seed: .*\(got 12345678901234567890\)"),
        ("seed: " + "9" * 5000, r"c\.yaml:1: not valid YAML: '999.*5,002 characters.*' cannot be read as int"),
        ("seed: 0x" + "f" * 100_000, r"c\.yaml: seed: .*\(got <int>\)"),
        ("seed: 2024-01-01", r"c\.yaml: seed: .*\(got datetime.date\(2024, 1, 1\)\)"),
        ("seed: 2024-99-99", r"c\.yaml:1: not valid YAML: '2024-99-99' cannot be read as timestamp; put text into q"),
        ('data: {dir: "a\\0b"}', r"c\.yaml:1: not valid YAML: 'a\\x00b' holds what no text does"),
        ('data: {dir: "\\ud800"}', r"c\.yaml:1: not valid YAML: '\\ud800' holds what no text does"),
        ("seed: 1\0", r"c\.yaml: not valid YAML: special characters are not allowed"),
        (b"seed: \xff", r"c\.yaml: cannot be read as a configuration: not UTF-8 text"),
        ("seed: 5".encode("utf-16"), r"c\.yaml: cannot be read as a configuration: not UTF-8 text"),
        ("seed: 5\n\ufefftrain: {}", r"c\.yaml: unknown key \\ufefftrain; did you mean"),
        ("train:\n\tl2: 1", r"c\.yaml:2: not valid YAML: found character"),
        ("? [1]\n: 2", r"c\.yaml:1: not valid YAML: a key is a list or mapping"),
        ("train: {? {a: 1} : 2}", r"c\.yaml:1: not valid YAML: a key is a list or mapping"),
        ("train: {1: 2}", r"c\.yaml: train.1: keys should be strings"),
        ("2024-01-01: 1", r"c\.yaml: unknown key 2024-01-01"),
        ("train.l2: 1", r"c\.yaml: unknown key train.l2; in a file write l2 below its section, train:"),
        (f"seed: {LONG}", r"c\.yaml: seed: .*\(got 'kkk.*100,002 characters.*k'\)"),
        (f"model: {{name: {LONG}}}", r"c\.yaml: model.name: 'kkk.*100,002 characters.*k' is no model"),
        (f"train: {{{'k' * 900}: 1}}", r"c\.yaml: unknown key train.kkk.*906 characters"),
        (f"seed: [{'1, ' * 5_000}]", r"c\.yaml: seed: .*\(got \[1, 1, .*\]\)"),
    ],
    ids=lambda value: shown(value),
)
def test_odd_files_are_one_short_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=message) as error:
        load_config(file)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 750


def test_the_manifest_of_a_model_is_a_configuration(tmp_path: Path) -> None:
    config = load_config(None, ["model.name=comirec_dr", "model.dim=8", "seed=4"])
    manifest = {"format_version": 5, "step": 3, "config": config.model_dump(mode="json"), "files": {"x" * 300_000: {}}}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(manifest))
    assert load_config(file) == config
    assert load_config(file, ["model.dim=6"]).model.dim == 6
    file.write_text(
        json.dumps(
            {"format_version": 3, "config": {"data": {"history_length": 7}, "train": {}, "model": {"name": "comirec"}}}
        )
    )
    assert (load_config(file).task.history_length, load_config(file).model.name) == (7, "comirec_dr")
    file.write_text('{"seed": 4}')
    assert load_config(file).seed == 4
    for text, message in (
        ('{"format_version": 5}', "holds no configuration"),
        ('{"seed": ', "not valid JSON"),
        ("[" * 10**6, "JSON"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            load_config(file)


def test_what_is_not_said_is_filled_in(tmp_path: Path) -> None:
    beneath = {"model": {"name": "comirec_dr", "dim": 8, "num_interests": 2}, "task": {"history_length": 7}}
    file = tmp_path / "c.yaml"
    file.write_text("task: {name: every_position}\nmodel: {dim: 16}\n")
    found = load_config(file, ["model.num_interests=5"], beneath)
    assert (found.model.name, found.model.dim, found.model.num_interests) == ("comirec_dr", 16, 5)
    assert (found.task.name, found.task.history_length) == ("every_position", 7)
    assert load_config(None, ["model.name=mind"], beneath).model == load_config(None, ["model.name=mind"]).model


def test_a_mark_at_the_start_and_aliases_of_numbers_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("\ufefftrain: {l2: &x 0.5}\ntables: {learning_rate: *x}\n")
    config = load_config(tmp_path / "c.yaml")
    assert (config.train.l2, config.tables.learning_rate) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=2024-99-99", "seed=2024-99-99: the value is not valid YAML: '2024-99-99' cannot be read as timestamp"),
        ("seed=" + "[" * 50_000, "the value is not valid YAML: nested more than 20 levels deep"),
        ("seed=[&a [1], *a]", "seed: input should be a valid integer"),
        ("train={l2: 1, l2: 2}", "key l2 is given twice"),
        ("train.l2=1.0e+308", "train.l2: input should be less than or equal to 1000"),
        ("train=&a {l2: *a}", r"\*a stands within itself"),
        ("train={[1]: 2}", "a key is a list or mapping"),
        (LONG, "overrides kkk.*100,000 characters.*k: write it as key=value"),
        (f"seed={LONG}", r"seed: .*\(got 'kkk.*100,002 characters"),
        (f"seed.{LONG}=1", "seed: input should be a valid integer"),
        ("model.name." + "a." * 2000 + "b=1", "model.name: .* is no name"),
        ("seed=\0", r"seed=\\x00: the value is not valid YAML: special characters"),
    ],
    ids=lambda value: shown(value),
)
def test_odd_overrides_are_one_short_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_config(None, [override])
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 750


def test_a_section_may_stand_for_another(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: &t {max_steps: 7}\n")
    assert load_config(file).train.max_steps == 7
    file.write_text("model: &m {name: mind, dim: 8}\n")
    assert load_config(file).model.dim == 8
    file.write_text("data: {dir: &d store}\ntrain: {<<: {max_steps: 9}, l2: 0.0, init_from: *d}\n")
    found = load_config(file)
    assert (found.train.max_steps, str(found.train.init_from)) == (9, "store")
