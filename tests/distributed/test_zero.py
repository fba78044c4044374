"""The dense network under DeepSpeed ZeRO-1 and ZeRO-2 trains as under DDP, and their checkpoints are the same."""

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment
from torch import Tensor

from eupmim_dist.checkpoint.layout import resolve
from eupmim_dist.checkpoint.load import load_training
from eupmim_dist.checkpoint.save import Saving, save_checkpoint
from eupmim_dist.checkpoint.writer import CheckpointWriter
from eupmim_dist.errors import UserError
from eupmim_dist.optim.tables import TABLE_OPTIMIZERS
from eupmim_dist.parallel.world import init_world
from eupmim_dist.parallel.zero import ZeroDense, adapt_config
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import prepare_step, train_step
from tests.distributed import test_checkpoints as checkpoints
from tests.distributed import test_invariance as invariance
from tests.distributed import test_threads as threads
from tests.distributed.spawn import Ranks, run_ranks
from tests.stores import small_store

DDP = 0
AtRanks = Callable[..., list[Any]]
NUM_STEPS, BROKEN = 25, 5
"""Steps, and the one in which a gradient is not finite on one rank."""


@pytest.fixture(scope="module")
def at_ranks() -> Iterator[AtRanks]:
    """`run_ranks`, with the same ranks for each number of them: importing DeepSpeed takes longer than a test."""
    with ExitStack() as started:
        by_size: dict[int, Ranks] = {}

        def at(size: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
            if size not in by_size:
                by_size[size] = started.enter_context(Ranks(size, collective_timeout=120))
            return by_size[size].run(fn, *args, timeout=180)

        yield at


@contextmanager
def launched(stage: int, **env: str) -> Iterator[None]:
    """As `accelerate launch` starts a rank for a stage of ZeRO, or DDP; several times in a process."""
    if stage != DDP:
        env |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    AcceleratorState._reset_state(reset_partial_state=True)
    with patch_environment(**env):
        init_world(cpu=True)
        yield


def spoil_a_gradient(run: Run) -> None:
    """Makes one number of one parameter's next gradient infinite on the last rank: one rank's part under ZeRO."""
    parameter = next(run.model.parameters())

    def spoil(gradient: Tensor) -> Tensor:
        hook.remove()
        gradient = gradient.clone()
        gradient.view(-1)[0] = float("inf")
        return gradient

    hook = parameter.register_hook(spoil)


def assert_strategy(run: Run, stage: int) -> None:
    assert run.dense.strategy == (f"DeepSpeed ZeRO-{stage}" if stage else "DDP" if run.world.size > 1 else "one copy")


def train(values: dict[str, Any], stage: int, precision: str = "no") -> dict[str, Any]:
    with launched(stage, ACCELERATE_MIXED_PRECISION=precision):
        run = invariance.start(values)
        assert_strategy(run, stage)
        before = invariance.weights(run)
        computed: list[torch.dtype] = []
        linear = next(module for module in run.model.modules() if isinstance(module, torch.nn.Linear))
        linear.register_forward_hook(lambda module, given, output: computed.append(output.dtype))
        outcomes = []
        for step in range(NUM_STEPS):
            prepared = prepare_step(run, step)
            if step == BROKEN and run.world.rank == run.world.size - 1:
                spoil_a_gradient(run)
            outcomes.append(train_step(run, step, prepared))
    losses = torch.stack([torch.stack(list(outcome.shares.values())).sum() for outcome in outcomes])
    dist.all_reduce(losses)
    assert set(computed) == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    return {
        "losses": losses,
        "norms": torch.stack([outcome.verdict.norm for outcome in outcomes]),
        "ok": [bool(outcome.verdict.ok) for outcome in outcomes],
        "clipped": sum(
            outcome.verdict.factor is not None and float(outcome.verdict.factor) < 1 for outcome in outcomes
        ),
        "before": before,
        "after": invariance.weights(run),
        "state": run.dense.optimizer_state(),
        "num_updates": float(run.table_optimizer.num_steps),
    }


def train_all(values: dict[str, Any], precision: str) -> list[dict[str, Any]]:
    return [train(values, stage, precision) for stage in (DDP, 1, 2)]


CLIPPED, PARTS = {"clip_norm": 0.25}, {"accumulation": 2}
FULL = {"name": "full_softmax"}
CASES = [
    pytest.param("exact", invariance.EUPMIM, {}, {}, 1, "no", id="exact-1"),
    pytest.param("exact", invariance.EUPMIM, {}, CLIPPED, 2, "no", id="exact-clipped-2"),
    pytest.param("lazy_adam", invariance.EUPMIM, {}, {**CLIPPED, **PARTS}, 3, "no", id="lazy-clipped-accumulation-3"),
    pytest.param("rowwise_adagrad", invariance.COMIREC, {}, PARTS, 2, "no", id="comirec-adagrad-accumulation-2"),
    pytest.param("exact", invariance.EUPMIM, {}, PARTS, 2, "bf16", id="bf16-2"),
    pytest.param("lazy_adam", invariance.EUPMIM, FULL, PARTS, 3, "no", id="full-softmax-accumulation-3"),
    pytest.param("exact", invariance.EUPMIM, FULL, {}, 2, "bf16", id="full-softmax-bf16-2"),
]


@pytest.mark.parametrize(("optimizer", "model", "objective", "changes", "size", "precision"), CASES)
def test_training_is_that_of_ddp(
    at_ranks: AtRanks,
    tmp_path: Path,
    optimizer: str,
    model: dict[str, Any],
    objective: dict[str, Any],
    changes: dict[str, Any],
    size: int,
    precision: str,
) -> None:
    small_store(tmp_path / "store", num_users=33)
    values = invariance.settings(tmp_path / "store", optimizer, model, 7, train=changes)
    values["objective"] = objective or values["objective"]
    for found in at_ranks(size, train_all, values, precision):
        ddp = found[0]
        assert ddp["losses"][-8:].mean() < ddp["losses"][:8].mean()
        assert ddp["ok"] == [step != BROKEN for step in range(NUM_STEPS)]
        assert (ddp["clipped"] > 1) == ("clip_norm" in changes)
        for zero in found[1:]:
            torch.testing.assert_close(zero["losses"], ddp["losses"], rtol=1e-5, atol=0.0)
            torch.testing.assert_close(zero["norms"], ddp["norms"], rtol=1e-3, atol=0.0, equal_nan=True)
            for what in ("ok", "clipped", "num_updates"):
                assert zero[what] == ddp[what]
            for name, after in ddp["after"].items():
                other, before = zero["after"][name], ddp["before"][name]
                if isinstance(after, tuple):  # rows of a table, after their ids
                    after, other, before = after[1], other[1], before[1]
                moved = (after - before).abs().max()
                assert (other - after).abs().max() <= 2e-3 * moved, name
            assert zero["state"].keys() == ddp["state"].keys()
            for name, moment in ddp["state"].items():
                torch.testing.assert_close(zero["state"][name], moment, rtol=1e-2, atol=1e-5)


SIZES = (1, 2, 3, 4)


def path_of(directory: Path, stage: int, size: int, optimizer: str) -> Path:
    return directory / f"{stage}-{size}-{optimizer}"


def train_and_save(store: Path, directory: Path) -> None:
    """For each table optimizer a run of some steps."""
    for optimizer in TABLE_OPTIMIZERS:
        with launched(DDP):
            run = checkpoints.start(store, optimizer)
            checkpoints.losses(run, 3)
            save_checkpoint(run, directory / optimizer)


def held(run: Run) -> dict[str, Tensor]:
    """All that this rank holds of the state, as it lies there; with no exchange, which costs most here."""
    tensors = {**checkpoints.rows_of(run), **dict(run.model.named_parameters())}
    if isinstance(run.dense, ZeroDense):
        for number, part in enumerate(run.dense._parts()):
            moments = {f"{name} {number}": moment for name, moment in run.dense.adam.state[part].items()}
            tensors |= {f"weights {number}": part, **moments}
    tensors["num_steps"] = run.table_optimizer.num_steps
    return tensors


def load_and_save(store: Path, directory: Path, stage: int, loaded: dict[str, list[Path]]) -> dict[str, Tensor]:
    """By table optimizer the losses that follow. What is `loaded`, one after another, is to be the same."""
    found = {}
    for optimizer, paths in loaded.items():
        with launched(stage):
            run = checkpoints.start(store, optimizer)
            assert_strategy(run, stage)
            found_in = []
            for path in paths:
                with torch.no_grad():
                    for tensor in held(run).values():
                        tensor.fill_(-7.0)  # nothing of it may be left
                load_training(run, resolve(path, "last"))
                found_in.append({name: tensor.clone() for name, tensor in held(run).items()})
            for path, other in zip(paths, found_in, strict=True):
                torch.testing.assert_close(other, found_in[0], rtol=0.0, atol=0.0, msg=lambda m, p=path: f"{p}: {m}")
            save_checkpoint(run, path_of(directory, stage, run.world.size, optimizer))
            found[optimizer] = checkpoints.losses(run, 3)
    return found


Saved = tuple[Path, Path, dict[int, dict[str, Tensor]]]
"""The store, where checkpoints lie, and by number of ranks and optimizer the losses that follow under DDP."""


@pytest.fixture(scope="module")
def saved(at_ranks: AtRanks, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    directory = tmp_path_factory.mktemp("zero")
    store = small_store(directory / "store", num_users=33).path
    at_ranks(2, train_and_save, store, directory)
    loaded = {optimizer: [directory / optimizer] for optimizer in TABLE_OPTIMIZERS}
    return store, directory, {size: at_ranks(size, load_and_save, store, directory, DDP, loaded)[0] for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", [1, 2])
def test_checkpoints_are_those_of_ddp(at_ranks: AtRanks, saved: Saved, stage: int, size: int) -> None:
    """What DDP saved at any number of ranks is loaded, and saved again as DDP saves it, byte for byte.

    So what is saved here is loaded wherever a checkpoint of DDP is (test_checkpoints.py).
    """
    store, directory, ddp = saved
    sizes = {name: SIZES if name == "exact" else [size % 4 + 1] for name in TABLE_OPTIMIZERS}
    loaded = {name: [path_of(directory, DDP, other, name) for other in sizes[name]] for name in sizes}
    found = at_ranks(size, load_and_save, store, directory, stage, loaded)[0]
    for optimizer, losses in ddp[size].items():
        torch.testing.assert_close(
            found[optimizer], losses, rtol=1e-5, atol=0.0, msg=lambda m, o=optimizer: f"{o}: {m}"
        )
        places = (path_of(directory, under, size, optimizer) for under in (DDP, stage))
        assert_same_files(*(resolve(place, "last").path for place in places))


def assert_same_files(first: Path, second: Path) -> None:
    files = sorted(path.name for path in first.iterdir())
    assert any(name.endswith(".safetensors") for name in files)
    assert files == sorted(path.name for path in second.iterdir())
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes(), (second, name)


def save_meanwhile(store: Path, stage: int, paused: Path, meanwhile: Path) -> dict[str, Any]:
    """The same state saved while training waits, and while it goes on for 3 steps before anything is written."""
    with launched(stage), pytest.MonkeyPatch.context() as patch:
        run = checkpoints.start(store, "exact")
        checkpoints.losses(run, 3)
        save_checkpoint(run, paused)
        before = checkpoints.snapshot(run)
        trained, write = threading.Event(), CheckpointWriter._write

        def write_late(*args: Any) -> Any:
            assert trained.wait(60)
            return write(*args)

        patch.setattr(CheckpointWriter, "_write", write_late)
        saving = Saving(run, meanwhile)
        losses = checkpoints.losses(run, 3)
        early, after = saving.done(), checkpoints.snapshot(run)
        trained.set()
        saving.finish()
        load_training(run, resolve(paused, "last"))
        moved = [name for name, tensor in after["dense"].items() if not torch.equal(tensor, before["dense"][name])]
        return {"losses": losses, "again": checkpoints.losses(run, 3), "early": early, "moved": set(moved)}


@pytest.mark.parametrize(("stage", "size"), [(1, 1), (1, 3), (2, 2), (2, 4)])
def test_saving_while_training_goes_on_saves_what_saving_in_a_pause_does(
    at_ranks: AtRanks, tmp_path: Path, stage: int, size: int
) -> None:
    """Loading what was saved gives the same losses again, bit for bit."""
    store = small_store(tmp_path / "store", num_users=33).path
    paused, meanwhile = tmp_path / "paused", tmp_path / "meanwhile"
    for rank in at_ranks(size, save_meanwhile, store, stage, paused, meanwhile):
        assert not rank["early"]
        assert {name.partition(".")[0] for name in rank["moved"]} >= {"exp_avg", "exp_avg_sq", "extractor"}
        assert torch.equal(rank["losses"], rank["again"])
    assert_same_files(resolve(paused, "last").path, resolve(meanwhile, "last").path)


def loaded_by_training(store: Path) -> bool:
    import eupmim_dist.cli.train  # noqa: F401

    checkpoints.losses(checkpoints.start(store, "exact"), 1)
    return "deepspeed" in sys.modules


def test_deepspeed_is_loaded_only_where_it_is_used(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", num_users=33).path
    assert run_ranks(2, loaded_by_training, store) == [False, False]


def configuration(**changes: Any) -> dict[str, Any]:
    """What Accelerate makes of a stage, or of a file that leaves all to it; a key of ZeRO's after `zero__`."""
    config: dict[str, Any] = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": 1,
        "gradient_clipping": "auto",
        "steps_per_print": float("inf"),
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}, "reduce_bucket_size": "auto"},
    }
    for key, value in changes.items():
        if key.startswith("zero__"):
            config["zero_optimization"][key.removeprefix("zero__")] = value
        else:
            config[key] = value
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_clipping": 1.0}, "gradient_clipping is set; set train.clip_norm instead"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is set; set train.accumulation instead"),
        ({"train_batch_size": 64}, "train_batch_size is set; set train.global_batch_size instead"),
        ({"train_micro_batch_size_per_gpu": 8}, "set train.global_batch_size instead"),
        (
            {"optimizer": {"type": "AdamW"}},
            "optimizer is set; Adam is used: set train.optimizer, train.learning_rate",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler is set; set train.schedule"),
        ({"fp16": {"enabled": True}}, "fp16 is set; use bf16"),
        ({"bf16": {"enabled": True, "immediate_grad_update": True}}, "bf16.immediate_grad_update is set"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op is set; it is not supported: remove it"),
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation is set; set train.accumulation"),
        ({"pipeline": {"a": 1}}, "pipeline is set"),
        ({"expert_parallel": {"enabled": True}}, "expert_parallel is set"),
        ({"zero__offload_optimizer": {"device": "cpu"}}, "zero_optimization.offload_optimizer is set"),
        ({"zero__offload_param": {"device": "nvme"}}, "zero_optimization.offload_param is set"),
        ({"zero__cpu_offload": True}, "zero_optimization.cpu_offload is set"),
        ({"zero__stage": 3}, r"zero_optimization.stage \(zero_stage\) is 3: use 1 or 2"),
        ({"zero__stage": 0}, "is 0: use 1 or 2"),
    ],
)
def test_what_contradicts_is_refused(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str) -> None:
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds.json")
    with pytest.raises(UserError, match=f"^ds.json: .*{message}") as failure:
        adapt_config(configuration(**changes), 1000)
    assert "\n" not in str(failure.value)


def start_with(store: Path, content: str | None, env: dict[str, str]) -> str:
    """What starting a training under a DeepSpeed file says, or which strategy it has."""
    file = store.parent / "ds.json"
    if content is not None:
        env |= {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
        file.write_text(content)
    try:
        with launched(2, **env):
            run = checkpoints.start(store, "exact")
            checkpoints.losses(run, 2)
            return run.dense.strategy
    except UserError as mistake:
        return str(mistake)


def start_with_each(store: Path) -> list[str]:
    user = {
        "zero_optimization": {"stage": 1, "overlap_comm": False, "reduce_bucket_size": 500},
        "train_batch_size": "auto",
    }
    wrong = {"zero_optimization": {"stage": 2, "reduce_bucket_size": "many"}}
    cases: list[tuple[str | None, dict[str, str]]] = [
        (json.dumps(user), {}),
        (json.dumps(wrong), {}),
        ("{", {}),
        ("{}", {}),
        (None, {"ACCELERATE_GRADIENT_CLIPPING": "1.0"}),
        (None, {"ACCELERATE_MIXED_PRECISION": "fp16"}),
        (None, {"ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": "Expert"}),
    ]
    os.environ.pop("ACCELERATE_DEEPSPEED_CONFIG_FILE", None)
    return [start_with(store, content, env) for content, env in cases]


def test_a_file_of_ones_own_is_taken_or_refused_in_one_line(at_ranks: AtRanks, tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", num_users=33).path
    [[taken, *refused]] = at_ranks(1, start_with_each, store)
    assert taken == "DeepSpeed ZeRO-1"
    file = tmp_path / "ds.json"
    for said, expected in zip(
        refused,
        [
            f"{file}: .*reduce_bucket_size.*",
            f"{file}: .*line 1 column 2.*",
            f"{file}: .*ZeRO optimization config.*",
            "Accelerate's deepspeed_config: gradient_clipping is set; set train.clip_norm instead",
            "Accelerate's deepspeed_config: fp16 is set; .*",
            "Accelerate's deepspeed_config: deepspeed_moe_layer_cls_names is set; .*",
        ],
        strict=True,
    ):
        assert re.fullmatch(expected, said), said


def measured_and_not(values: dict[str, Any], stage: int, precision: str) -> list[dict[str, Any]]:
    found = []
    for measure in (True, False):
        with launched(stage, ACCELERATE_MIXED_PRECISION=precision):
            found.append(threads.train(values, measure))
    return found


@pytest.mark.parametrize(("stage", "precision"), [(1, "no"), (2, "bf16"), (DDP, "bf16")])
def test_choosing_threads_changes_nothing(at_ranks: AtRanks, tmp_path: Path, stage: int, precision: str) -> None:
    small_store(tmp_path / "store", num_users=33)
    values = invariance.settings(tmp_path / "store", "exact", invariance.EUPMIM, 20)
    for found, plain in at_ranks(2, measured_and_not, values, stage, precision):
        assert found["told"][1] == 1
        assert found["losses"] == plain["losses"]
