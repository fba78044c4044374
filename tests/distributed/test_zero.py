"""The dense network under DeepSpeed ZeRO-1 and ZeRO-2 trains as under DDP, and their checkpoints are the same."""

import json
import os
import re
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
from eupmim_dist.parallel.zero import settle
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import prepare_step, train_step
from tests.distributed import test_checkpoints as checkpoints
from tests.distributed import test_invariance as invariance
from tests.distributed.spawn import Ranks
from tests.stores import small_store

DDP = 0
AtRanks = Callable[..., list[Any]]
NUM_STEPS, BROKEN = 25, 5
"""Steps, and the one in which a gradient is not finite on one rank."""


@pytest.fixture(scope="module")
def at_ranks() -> Iterator[AtRanks]:
    """`run_ranks`, with the same ranks for each number of them: importing DeepSpeed takes a rank longer than a test."""
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
CASES = [
    pytest.param("exact", invariance.EUPMIM, {}, 1, "no", id="exact-1"),
    pytest.param("exact", invariance.EUPMIM, CLIPPED, 2, "no", id="exact-clipped-2"),
    pytest.param("lazy_adam", invariance.EUPMIM, {**CLIPPED, **PARTS}, 3, "no", id="lazy-clipped-accumulation-3"),
    pytest.param("rowwise_adagrad", invariance.COMIREC, PARTS, 2, "no", id="comirec-adagrad-accumulation-2"),
    pytest.param("exact", invariance.EUPMIM, PARTS, 2, "bf16", id="bf16-2"),
]


@pytest.mark.parametrize(("optimizer", "model", "changes", "size", "precision"), CASES)
def test_training_is_that_of_ddp(
    at_ranks: AtRanks,
    tmp_path: Path,
    optimizer: str,
    model: dict[str, Any],
    changes: dict[str, Any],
    size: int,
    precision: str,
) -> None:
    small_store(tmp_path / "store", num_users=33)
    values = invariance.settings(tmp_path / "store", optimizer, model, 7, train=changes)
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


Place = tuple[int, int]  # stage, number of ranks
SAVED_AT: list[Place] = [(DDP, 2), (1, 1), (1, 4), (2, 2), (2, 3)]
LOADED_AT: list[Place] = [(DDP, 1), (DDP, 3), (1, 2), (1, 3), (2, 1), (2, 4)]
"""Together each stage at every number of ranks up to 4."""
ALL_AT: list[Place] = [(2, 3), (DDP, 1), (1, 2)]
"""Where every table optimizer's state is saved or loaded; elsewhere that of `checkpoints.SOME`."""


def optimizers_at(*places: Place) -> list[str]:
    return [name for name in TABLE_OPTIMIZERS if name in checkpoints.SOME or all(place in ALL_AT for place in places)]


def path_of(directory: Path, place: Place, optimizer: str) -> Path:
    return directory / f"{optimizer}-{place[0]}-{place[1]}"


def train_and_save(store: Path, directory: Path, place: Place) -> dict[str, Any]:
    """By table optimizer: the state that was saved, and the losses of the steps after that."""
    found = {}
    for optimizer in optimizers_at(place):
        with launched(place[0]):
            run = checkpoints.start(store, optimizer)
            assert_strategy(run, place[0])
            checkpoints.losses(run, 3)
            save_checkpoint(run, path_of(directory, place, optimizer))
            found[optimizer] = {"saved": checkpoints.snapshot(run), "losses": checkpoints.losses(run, 3)}
    return found


def spoil(run: Run) -> None:
    """Leaves nothing that could pass for what is loaded."""
    with torch.no_grad():
        for tensor in [*checkpoints.rows_of(run).values(), *run.model.parameters(), run.table_optimizer.num_steps]:
            tensor.fill_(-7.0)
    state = {name: torch.full_like(moment, -7.0) for name, moment in run.dense.optimizer_state().items()}
    run.dense.restore_optimizer(state, 99)
    assert all((moment == -7.0).all() for moment in run.dense.optimizer_state().values())


def load_and_train(store: Path, directory: Path, place: Place) -> dict[tuple[str, Place], Any]:
    """By table optimizer and where it was saved: the state loaded, and the losses after that."""
    found = {}
    for optimizer in optimizers_at(place):
        with launched(place[0]):
            run = checkpoints.start(store, optimizer)
            assert_strategy(run, place[0])
            for saved_at in SAVED_AT:
                if optimizer in optimizers_at(place, saved_at):
                    spoil(run)
                    load_training(run, resolve(path_of(directory, saved_at, optimizer), "last"))
                    loaded = checkpoints.snapshot(run)
                    found[optimizer, saved_at] = {"loaded": loaded, "losses": checkpoints.losses(run, 3)}
    return found


Saved = tuple[Path, Path, dict[Place, list[Any]]]
"""The store, where checkpoints lie, and by where they were saved what each rank saved."""


@pytest.fixture(scope="module")
def saved(at_ranks: AtRanks, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    directory = tmp_path_factory.mktemp("zero")
    store = small_store(directory / "store", num_users=33).path
    return store, directory, {place: at_ranks(place[1], train_and_save, store, directory, place) for place in SAVED_AT}


@pytest.mark.parametrize("place", LOADED_AT, ids=str)
def test_checkpoints_go_from_any_to_any(at_ranks: AtRanks, saved: Saved, place: Place) -> None:
    store, directory, by_place = saved
    ranks = at_ranks(place[1], load_and_train, store, directory, place)
    for optimizer, saved_at in ranks[0]:
        case = f"{optimizer}, saved at {saved_at}"
        before = [rank[optimizer] for rank in by_place[saved_at]]
        after = [rank[optimizer, saved_at] for rank in ranks]
        rows, found = checkpoints.joined(before, "saved"), checkpoints.joined(after, "loaded")
        assert rows.keys() == found.keys()
        for name, tensor in rows.items():
            assert torch.equal(found[name], tensor), f"{case}: {name}"
        dense = before[0]["saved"]["dense"]
        assert any(name.startswith("exp_avg_sq.") and moment.any() for name, moment in dense.items())
        for rank in after:
            assert rank["loaded"]["dense"].keys() == dense.keys()
            for name, tensor in dense.items():
                assert torch.equal(rank["loaded"]["dense"][name], tensor), f"{case}: {name}"
            for key in ("progress", "num_steps"):
                assert rank["loaded"][key] == before[0]["saved"][key], case
            torch.testing.assert_close(rank["losses"], before[0]["losses"], rtol=1e-5, atol=0.0, msg=case)
    assert {case[0] for case in ranks[0]} == set(optimizers_at(place))


def save_meanwhile(store: Path, paused: Path, meanwhile: Path) -> dict[str, Any]:
    """The same state saved while training waits, and while it goes on for 3 steps before anything is written."""
    with launched(2), pytest.MonkeyPatch.context() as patch:
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


def test_saving_while_training_goes_on_saves_what_saving_in_a_pause_does(at_ranks: AtRanks, tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", num_users=33).path
    paused, meanwhile = tmp_path / "paused", tmp_path / "meanwhile"
    for rank in at_ranks(2, save_meanwhile, store, paused, meanwhile):
        assert not rank["early"]
        assert {name.partition(".")[0] for name in rank["moved"]} >= {"exp_avg", "exp_avg_sq", "extractor"}
        assert torch.equal(rank["losses"], rank["again"])
    first, second = resolve(paused, "last"), resolve(meanwhile, "last")
    assert first.training == second.training
    files = sorted(path.name for path in first.path.iterdir())
    assert sum(name.endswith(".safetensors") for name in files) == 2
    assert files == sorted(path.name for path in second.path.iterdir())
    for name in files:
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name


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
        ({"optimizer": {"type": "AdamW"}}, "optimizer is set; Adam is used: set train.learning_rate and train.l2"),
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
        settle(configuration(**changes), 1000)
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
