"""Training on one rank: every registered model learns, the golden curve holds, runs resume exactly."""

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eupmim_dist.assemble import load_trained
from eupmim_dist.checkpoint.layout import complete_steps, open_checkpoint, resolve
from eupmim_dist.checkpoint.load import load_training, open_sound
from eupmim_dist.checkpoint.run_dir import Start, find_start
from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.errors import UserError
from eupmim_dist.export.model_dir import consolidate
from eupmim_dist.optim.schedule import rate_factor
from eupmim_dist.optim.tables import TABLE_OPTIMIZERS
from eupmim_dist.parallel.prefetch import STEPS_AHEAD
from eupmim_dist.train.loss import Loss
from eupmim_dist.train.state import Outcome, Run
from eupmim_dist.train.step import prepare_step, train_step
from eupmim_dist.training import _compared, evaluate_best
from tests.models import of_histories
from tests.runs import WORLD, config_of, logged, start, train_in
from tests.stores import small_store

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = of_histories()
LEARNING: dict[str, dict[str, Any]] = {"lightgcn": {"mask_targets": False, "init_std": 2.0, "num_layers": 1}}
"""With which a model learns what there is in random histories: of a graph only which items are neighbours."""
GOLDEN = Path(__file__).with_name("golden_losses.json")


def one_step(run: Run, step: int) -> Outcome:
    return train_step(run, step, prepare_step(run, step))


def losses(run: Run, number: int) -> list[float]:
    run.dense.module.train()
    return [float(torch.stack(list(one_step(run, step).shares.values())).sum()) for step in range(number)]


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_with_every_table_optimizer(tmp_path: Path, name: str, optimizer: str) -> None:
    config = config_of(tmp_path, tables__optimizer=optimizer, model={"name": name, "dim": 8, **LEARNING.get(name, {})})
    values = losses(start(config), 80)
    assert sum(values[-10:]) < 0.97 * sum(values[:10])


def test_the_golden_curve_holds(tmp_path: Path) -> None:
    """A change that is not meant to change numbers must not. Deleting the file makes a new one."""
    config = config_of(tmp_path, model__dropout=0.0, model__attention_dropout=0.0)
    values = losses(start(config), 20)
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(values))
        pytest.fail(f"wrote {GOLDEN.name}; run again")
    assert values == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


def tensors_of(run: Run) -> dict[str, Tensor]:
    """Copies of everything that training changes: weights and the optimizers' states."""
    tables = {f"table.{name}": shard.weight for name, shard in run.tables.shards.items()}
    table_state = {
        f"table.{name}.{key}": value
        for name, state in run.table_optimizer.row_state.items()
        for key, value in state.items()
    }
    steps = {f"dense.steps.{number}": state["step"] for number, state in enumerate(run.dense.optimizer.state.values())}
    found = {
        **dict(run.model.named_parameters()),
        **run.dense.optimizer_state(),
        **steps,
        **tables,
        **table_state,
        "table.steps": run.table_optimizer.num_steps,
    }
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    whole = train_in(config_of(tmp_path, tables__optimizer=optimizer), tmp_path / "whole")
    first = config_of(tmp_path, tables__optimizer=optimizer, train__max_steps=6)
    train_in(first, tmp_path / "halves")
    resumed = train_in(config_of(tmp_path, tables__optimizer=optimizer), tmp_path / "halves")
    check_equal(tensors_of(resumed), tensors_of(whole))
    steps = [{line["step"] for line in logged(tmp_path / run)} for run in ("whole", "halves")]
    assert steps[0] == steps[1] >= {2, 4, 6, 8, 10, 12}


class Crash(Exception):
    pass


def spoil(*steps: int, where: str = "dense", crash_at: int | None = None) -> Callable[[Run], None]:
    """Makes one number of a gradient, of the dense part or of a row, not finite in some steps; may end a step."""

    def prepare(run: Run) -> None:
        def before_forward(module: torch.nn.Module, args: Any) -> None:
            if run.progress.step == crash_at:
                raise Crash
            if where == "rows":
                args[0]["candidates"].register_hook(lambda g: ruined(g, float("inf")))

        def ruined(gradient: Tensor, value: float) -> Tensor:
            if run.progress.step not in steps:
                return gradient
            gradient = gradient.clone()
            gradient[(-1,) * gradient.dim()] = value
            return gradient

        run.model.register_forward_pre_hook(before_forward)
        if where == "dense":
            list(run.model.parameters())[-1].register_hook(lambda g: ruined(g, float("nan")))

    return prepare


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_a_run_that_crashed_goes_on_bit_for_bit_whatever_it_was_doing(tmp_path: Path, optimizer: str) -> None:
    """Skipped steps before the checkpoint and after it, a schedule, clipping, parts of a batch, dropout."""
    config = config_of(
        tmp_path,
        tables__optimizer=optimizer,
        train__schedule="cosine",
        train__warmup_steps=4,
        train__clip_norm=0.05,
        train__accumulation=2,
    )
    whole = train_in(config, tmp_path / "whole", spoil(0, 4, 7))
    with pytest.raises(Crash):
        train_in(config, tmp_path / "crashed", spoil(0, 4, 7, crash_at=9))
    assert resolve(tmp_path / "crashed", "last").progress.step >= 6
    resumed = train_in(config, tmp_path / "crashed", spoil(0, 4, 7))
    check_equal(tensors_of(resumed), tensors_of(whole))
    assert float(resumed.table_optimizer.num_steps) == 9
    assert logged(tmp_path / "crashed") == logged(tmp_path / "whole")


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("where", ["dense", "rows"])
@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_a_gradient_that_is_not_finite_skips_the_step(
    tmp_path: Path, optimizer: str, where: str, clip_norm: float | None
) -> None:
    config = config_of(tmp_path, tables__optimizer=optimizer, train__clip_norm=clip_norm)
    run, never = start(config), start(config)
    spoil(0, 3, where=where)(run)
    for step in range(6):
        before = tensors_of(run)
        run.progress.step = step
        outcome = one_step(run, step)
        assert bool(outcome.verdict.ok) == (step not in (0, 3))
        if step not in (0, 3):
            one_step(never, step)
            continue
        after = tensors_of(run)
        if step == 0:  # the dense optimizer has made its state by now: at no step
            for name in after.keys() - before.keys():
                assert not after.pop(name).any(), name
        check_equal(after, before)
    check_equal(tensors_of(run), tensors_of(never))  # as if these steps had never been
    assert float(run.table_optimizer.num_steps) == 4


@pytest.mark.parametrize("where", ["dense", "rows"])
def test_skipped_steps_are_counted_and_told(tmp_path: Path, capfd: pytest.CaptureFixture[str], where: str) -> None:
    config = config_of(tmp_path, train__log_every=4)
    run = train_in(config, tmp_path / "run", spoil(1, 4, 5, 6, where=where))
    lines = {line["step"]: line for line in logged(tmp_path / "run") if "loss" in line}
    assert {step: line["skipped_steps"] for step, line in lines.items()} == {4: 1, 8: 3, 12: 0}
    assert all(line["gradient_norm"] > 0 for line in lines.values())  # means over the steps that were made
    assert "step 8: 3 of 4 steps skipped" in capfd.readouterr().err
    assert resolve(tmp_path / "run", "last").progress.num_updates == 8
    assert float(run.table_optimizer.num_steps) == 8


def test_many_steps_without_an_update_end_the_training(tmp_path: Path) -> None:
    config = config_of(tmp_path, train__log_every=4, train__max_steps=40, evaluation__patience=0)
    with pytest.raises(UserError, match=r"step 24: the gradients of the last 20 steps were not finite"):
        train_in(config, tmp_path / "run", spoil(*range(4, 40)))
    lines = [line for line in logged(tmp_path / "run") if "skipped_steps" in line]
    assert [line["skipped_steps"] for line in lines] == [0, 4, 4, 4, 4, 4]
    assert ["loss" in line for line in lines] == [True] + 5 * [False]  # nothing was learned, so nothing is told
    assert resolve(tmp_path / "run", "last").progress.num_updates <= 4  # an earlier one, to go on from


def test_the_rest_of_a_window_without_an_update_does_not_end_the_training(tmp_path: Path) -> None:
    config = config_of(tmp_path, train__log_every=5)  # 12 steps: the last window has two
    run = train_in(config, tmp_path / "run", spoil(10, 11))
    assert resolve(tmp_path / "run", "last").progress.num_updates == 10
    assert [line["skipped_steps"] for line in logged(tmp_path / "run") if "skipped_steps" in line] == [0, 0, 2]
    assert run.progress.step == 12


def test_the_number_of_steps_is_fixed_where_the_rates_depend_on_it(tmp_path: Path) -> None:
    train_in(config_of(tmp_path, train__schedule="linear", train__max_steps=6), tmp_path / "run")
    longer = config_of(tmp_path, train__schedule="linear", train__max_steps=12)
    with pytest.raises(UserError, match=r"train\.max_steps: 12, but .* was trained with 6"):
        find_start(tmp_path / "run", "auto", longer, WORLD)


@pytest.mark.parametrize("optimizer", ["exact", "sgd"])
def test_clipping_is_that_of_the_whole_model_as_one_set_of_parameters(tmp_path: Path, optimizer: str) -> None:
    """Against torch's clip_grad_norm_ over a plain copy of the network and of the whole tables."""
    no_dropout = {"model__dropout": 0.0, "model__attention_dropout": 0.0}
    l2 = 1e-3 if optimizer == "exact" else 0.0
    changes = {"tables__optimizer": optimizer, "tables__learning_rate": 0.1, "train__l2": l2, **no_dropout}
    free = start(config_of(tmp_path, **changes))
    norms = [float(one_step(free, step).verdict.norm) for step in range(8)]
    bound = sorted(norms)[3]
    run = start(config_of(tmp_path, **changes, train__clip_norm=bound))

    model = copy.deepcopy(run.model)
    tables = {name: torch.nn.Parameter(by_id(run, name)) for name in run.tables.shards}
    dense_adam = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=l2)
    kind: Any = torch.optim.Adam if optimizer == "exact" else torch.optim.SGD
    of_tables = kind(tables.values(), lr=0.1, weight_decay=l2)
    clipped = []
    for step in range(8):
        batch = run.task.sample(step)
        candidates = run.objective.draw(batch, step)
        rows = {
            name: tables[table][ids.clamp(min=0)] * (ids != NO_ROW)[..., None]
            for name, (table, ids) in (run.model.uses(batch) | candidates.uses()).items()
        }
        for each in (dense_adam, of_tables):
            each.zero_grad()
        torch.stack(list(Loss(model, run.objective)(rows, batch, candidates, None).values())).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_([*model.parameters(), *tables.values()], bound)
        for each in (dense_adam, of_tables):
            each.step()
        verdict = one_step(run, step).verdict
        assert float(verdict.norm) == pytest.approx(float(norm), rel=1e-4)
        assert verdict.factor is not None
        assert float(verdict.factor) == pytest.approx(min(1.0, bound / float(norm)), rel=1e-4)
        clipped.append(float(verdict.factor) < 1.0)
        for name, table in tables.items():
            torch.testing.assert_close(by_id(run, name), table.detach(), rtol=1e-3, atol=1e-5)
    assert True in clipped
    assert False in clipped
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.bias") or name == "extractor.score.bias":
            continue  # partly without a gradient but for rounding, which Adam scales up
        ours = dict(run.model.named_parameters())[name]
        torch.testing.assert_close(ours, parameter, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def by_id(run: Run, name: str) -> Tensor:
    shard = run.tables.shards[name]
    return shard.weight[shard.ids().argsort()].clone()


@pytest.mark.parametrize("parts", [3, 5])  # 8 samples as 3 + 3 + 2, and as 2 + 2 + 2 + 2 + 0
@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_the_parts_of_a_batch_give_what_the_whole_gives(tmp_path: Path, optimizer: str, parts: int) -> None:
    changes = {
        "tables__optimizer": optimizer,
        "model__dropout": 0.0,
        "model__attention_dropout": 0.0,
        "train__clip_norm": 0.05,
    }
    whole = start(config_of(tmp_path, **changes))
    in_parts = start(config_of(tmp_path, **changes, train__accumulation=parts))
    assert losses(in_parts, 10) == pytest.approx(losses(whole, 10), rel=1e-5)
    for name in whole.tables.shards:
        torch.testing.assert_close(by_id(in_parts, name), by_id(whole, name), rtol=1e-3, atol=2e-5)


def test_a_run_asked_to_stop_saves_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    whole = train_in(config, tmp_path / "whole")

    def ask_at_step_5(run: Run) -> None:
        inner = run.table_optimizer.step

        def step(*args: Any) -> None:
            inner(*args)
            if run.progress.step == 4:
                run.stop_requested = True

        run.table_optimizer.step = step  # type: ignore[method-assign]

    stopped = train_in(config, tmp_path / "run", ask_at_step_5)
    assert stopped.asked_to_leave
    assert 5 <= stopped.progress.step <= 5 + STEPS_AHEAD  # what the thread may have planned by then
    assert resolve(tmp_path / "run", "last").step == stopped.progress.step
    again = train_in(config, tmp_path / "run")
    assert not again.asked_to_leave
    assert again.progress == whole.progress
    assert torch.equal(again.tables.shards["item"].weight, whole.tables.shards["item"].weight)


def test_preparing_ahead_changes_nothing(tmp_path: Path) -> None:
    runs = {}
    for prefetch in (True, False):
        place = tmp_path / str(prefetch)
        runs[prefetch] = tensors_of(train_in(config_of(tmp_path, train__prefetch=prefetch), place))
    check_equal(runs[True], runs[False])
    assert logged(tmp_path / "True") == logged(tmp_path / "False")


def test_the_schedule_drives_the_rates_of_the_network_and_of_the_tables(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        train__schedule="linear",
        train__warmup_steps=3,
        train__log_every=1,
        tables__learning_rate=0.5,
    )
    seen = []

    def watch(run: Run) -> None:
        inner = run.table_optimizer.step

        def step(*args: Any) -> None:
            inner(*args)
            seen.append((run.dense.optimizer.param_groups[0]["lr"], run.table_optimizer.rate))

        run.table_optimizer.step = step  # type: ignore[method-assign]

    train_in(config, tmp_path / "run", watch)
    factors = [rate_factor(config.train, step) for step in range(12)]
    assert seen == [pytest.approx((0.01 * factor, 0.5 * factor)) for factor in factors]
    assert [line["learning_rate"] for line in logged(tmp_path / "run") if "loss" in line] == pytest.approx(
        [0.01 * factor for factor in factors]
    )


def test_checkpoints_kept_are_the_best_and_the_last(tmp_path: Path) -> None:
    run = train_in(config_of(tmp_path, checkpoint__keep=1), tmp_path / "run")
    kept = {int(path.name.removeprefix("step-")) for path in complete_steps(tmp_path / "run")}
    assert kept == {12, run.progress.best_step}
    assert run.progress.best_step != 12
    assert resolve(tmp_path / "run").step == run.progress.best_step
    assert resolve(tmp_path / "run", "last").step == 12
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_best_found_at_the_end_is_saved(tmp_path: Path) -> None:
    config = config_of(tmp_path, evaluation__every=9, checkpoint__every=12, train__learning_rate=0.05)
    run = train_in(config, tmp_path / "run")
    assert resolve(tmp_path / "run").progress.best_step == run.progress.best_step
    assert resolve(tmp_path / "run").step == run.progress.best_step


def test_resuming_from_elsewhere_never_touches_another_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_in(config_of(tmp_path), tmp_path / name)
    with pytest.raises(UserError, match="already holds another run"):
        find_start(tmp_path / "two", str(tmp_path / "one"), config_of(tmp_path), WORLD)


def test_more_patience_goes_on_with_a_stopped_run(tmp_path: Path) -> None:
    changes = {"train__learning_rate": 1e-9, "train__max_steps": 20}
    train_in(config_of(tmp_path, **changes, evaluation__patience=2), tmp_path / "run")
    assert train_in(config_of(tmp_path, **changes, evaluation__patience=0), tmp_path / "run").progress.step == 20


@pytest.mark.parametrize("cut", ["metric", "top_n"])
def test_a_cutoff_beyond_the_catalogue_is_refused_before_training(tmp_path: Path, cut: str) -> None:
    value: Any = "recall@31" if cut == "metric" else [10, 31]
    with pytest.raises(UserError, match=rf"evaluation\.{cut}: top-N 31 is larger than the catalogue of 30"):
        start(config_of(tmp_path, **{f"evaluation__{cut}": value}))


def test_early_stopping_ends_the_run_and_stays_ended(tmp_path: Path) -> None:
    changes = {"train__learning_rate": 1e-9, "evaluation__patience": 2, "train__max_steps": 100}
    run = train_in(config_of(tmp_path, **changes), tmp_path / "run")
    assert run.progress.stopped
    assert run.progress.step == 12  # the best at 4, then two without a better one
    again = train_in(config_of(tmp_path, **changes), tmp_path / "run")
    assert again.progress.step == 12


def test_consolidated_and_run_give_the_same_metrics(tmp_path: Path) -> None:
    from eupmim_dist.evaluation.runner import evaluate_model

    run = train_in(config_of(tmp_path), tmp_path / "run")
    [best] = evaluate_best(run, tmp_path / "run")
    consolidate(resolve(tmp_path / "run"), tmp_path / "model")
    loaded = load_trained(tmp_path / "model", WORLD)
    assert evaluate_model(loaded, "test", "strict", [5]).metrics == best.metrics
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["metrics"] == best.metrics
    with pytest.raises(UserError, match="already exists"):
        consolidate(resolve(tmp_path / "run"), tmp_path / "model")


def test_run_directories_are_not_mixed_up(tmp_path: Path) -> None:
    train_in(config_of(tmp_path), tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.learning_rate: 0\.5, but .* was trained with 0\.01"):
        find_start(tmp_path / "run", "auto", config_of(tmp_path, train__learning_rate=0.5), WORLD)
    with pytest.raises(UserError, match="already holds a run"):
        find_start(tmp_path / "run", "never", config_of(tmp_path), WORLD)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="something that is not a run"):
        find_start(tmp_path / "other", "auto", config_of(tmp_path), WORLD)
    assert find_start(tmp_path / "new", "auto", config_of(tmp_path), WORLD) == Start(tmp_path / "new", None)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    train_in(config_of(tmp_path), tmp_path / "run")
    last = resolve(tmp_path / "run", "last")
    file = next(last.path.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        open_sound(partial(open_checkpoint, last.path), WORLD)
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match="cut short"):
        resolve(tmp_path / "run", "last")
    file.unlink()
    with pytest.raises(UserError, match="missing"):
        resolve(tmp_path / "run", "last")

    wider = start(config_of(tmp_path, model__dim=16))
    train_in(config_of(tmp_path), tmp_path / "second")
    with pytest.raises(UserError, match="is of another model"):
        load_training(wider, resolve(tmp_path / "second"))
    small_store(tmp_path / "other", seed=9)
    with pytest.raises(UserError, match="another store than"):
        load_trained(tmp_path / "second", WORLD, tmp_path / "other")


def test_hosts_may_have_their_files_elsewhere_and_must_have_the_same(tmp_path: Path) -> None:
    for name, layers in (("a", 2), ("b", 2), ("c", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"num_layers": layers}))
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / ".cache").write_text(name)
    for key in ("model.t5", "task.tokenizer"):
        here, there, other = (_compared(key, str(tmp_path / name)) for name in "abc")
        assert here == there != other
        assert _compared(key, "google-t5/t5-small") == "google-t5/t5-small"
        assert _compared(key, None) is None
    (tmp_path / "b" / "model.safetensors").write_bytes(b"more weights")
    assert _compared("model.t5", str(tmp_path / "a")) != _compared("model.t5", str(tmp_path / "b"))
    for key, one, two in (("train.threads", 2, 8), ("train.init_from", Path("a"), Path("b"))):
        assert _compared(key, one) == _compared(key, two) != _compared(key, None)
    assert _compared("train.learning_rate", 0.1) != _compared("train.learning_rate", 0.2)
