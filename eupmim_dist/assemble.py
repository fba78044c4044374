"""Configuration -> a run. The only file that sees every layer: read it first.

store    <- data.dir                       memory-mapped interactions
model    <- model, sizes from the store    the dense network, alike on every rank
tables   <- model.tables()                 item and user rows, a shard per rank
run      <- all of it, Accelerate, the optimizers and the sampler
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from eupmim_dist.checkpoint.layout import resolve
from eupmim_dist.checkpoint.load import load_model, open_sound
from eupmim_dist.checkpoint.origin import check_same_data
from eupmim_dist.checkpoint.run_dir import Start
from eupmim_dist.checkpoint.save import CheckpointHook
from eupmim_dist.config.schema import Config
from eupmim_dist.data.sampler import TrainingSampler
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.hook import EvaluationHook
from eupmim_dist.evaluation.runner import Result, check_cutoffs, evaluate_model
from eupmim_dist.files import write_text
from eupmim_dist.models.interface import DataShape
from eupmim_dist.models.registry import build_model
from eupmim_dist.optim.tables import make_table_optimizer
from eupmim_dist.parallel.agreement import agreed
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import World
from eupmim_dist.parallel.zero import make_dense
from eupmim_dist.telemetry.metrics import MetricsWriter
from eupmim_dist.telemetry.progress import TrainProgress
from eupmim_dist.telemetry.throughput import Throughput
from eupmim_dist.train.hooks import LogHook
from eupmim_dist.train.loop import train
from eupmim_dist.train.state import Assembled, Progress, Run


def open_store(path: Path, world: World) -> InteractionStore:
    """Opens an interaction store; one rank of each node checks the files' hashes."""
    with agreed(world):
        return InteractionStore.open(path, verify=world.local_rank == 0)


def assemble(config: Config, world: World, store: InteractionStore) -> Assembled:
    """A model with initial weights and its tables."""
    if config.world_size not in (None, world.size):
        raise UserError(
            f"world_size: the configuration is for {config.world_size} ranks and {world.size} were started; "
            f"use `eupmim-dist launch --nproc {config.world_size} -- ...`"
        )
    shape = DataShape(
        num_users=store.num_users,
        num_item_rows=store.num_item_rows,
        attributes={attribute.name: attribute.cardinality for attribute in store.attributes},
        history_length=config.data.history_length,
    )
    torch.manual_seed(config.seed)
    model = build_model(config.model, shape).to(world.device)
    tables = ShardedTables(model.tables(), config.seed, world, config.tables)
    return Assembled(config, world, store, model, tables)


def assemble_run(
    config: Config,
    world: World,
    store: InteractionStore,
    set_weights: Callable[[Assembled], None] = lambda initial: None,
) -> Run:
    """Everything a training needs, at step 0; `set_weights` may change the initial ones."""
    for split in ("valid", "test"):
        if not len(store.users(split)):
            raise UserError(f"{store.path}: split {split} has no users, so training could not be judged")
    for key, cutoffs in (("metric", [config.evaluation.cutoff]), ("top_n", config.evaluation.top_n)):
        check_cutoffs(cutoffs, store.num_item_rows, f"evaluation.{key}: ")
    base = assemble(config, world, store)
    set_weights(base)  # before the dense network is handed to what may copy it
    rate, l2 = config.train.learning_rate, config.train.l2
    return Run(
        config=config,
        world=world,
        store=store,
        model=base.model,
        tables=base.tables,
        sampler=TrainingSampler(
            store,
            seed=config.seed,
            global_batch_size=config.train.global_batch_size,
            history_length=config.data.history_length,
            min_history=config.data.min_history,
            num_negatives=config.train.num_negatives,
            rank=world.rank,
            world_size=world.size,
        ),
        dense=make_dense(base.model, rate, l2, world),
        table_optimizer=make_table_optimizer(config.tables, base.tables, rate, l2),
        progress=Progress(),
    )


def load_trained(path: Path, world: World, data: Path | None = None, which: str = "best") -> Assembled:
    """A trained model from a run directory (its `best` or `last` checkpoint), a checkpoint or a model directory.

    `data` overrides the store's path, not its content: a store with another fingerprint is refused.
    """
    checkpoint = open_sound(lambda: resolve(path, which), world)
    config = checkpoint.config.model_copy(update={"world_size": None})
    store = open_store(data or config.data.dir, world)
    with agreed(world):
        check_same_data(checkpoint, store)
        assembled = assemble(config, world, store)
    load_model(assembled, checkpoint)
    return assembled


def run_training(run: Run, start: Start) -> None:
    """Trains with logging, evaluation of the valid split and checkpoints attached."""
    main, run_dir = run.world.is_main, start.run_dir
    throughput = Throughput()
    with (
        MetricsWriter(run_dir, enabled=main, resume_step=run.progress.step or None) as writer,
        TrainProgress(run.config.train.max_steps, run.progress.step, is_main=main) as progress,
    ):
        train(
            run,
            [
                LogHook(writer, progress, throughput),
                EvaluationHook(writer, throughput),
                CheckpointHook(run_dir, throughput),
            ],
        )


def evaluate_best(run: Run, run_dir: Path) -> list[Result]:
    """The best checkpoint of a finished run on the test split; also `evaluation.json` in the run directory."""
    checkpoint = open_sound(lambda: resolve(run_dir, "best"), run.world)
    load_model(run, checkpoint)
    result = evaluate_model(run, "test", "strict", run.config.evaluation.top_n, progress=True)
    if run.world.is_main:
        content = {**result.as_dict(), "step": checkpoint.step}
        write_text(run_dir / "evaluation.json", json.dumps(content, indent=1) + "\n")
    return [result]


def describe_load(run: Run) -> list[str]:
    """How evenly the ranks were asked for rows of the sharded tables, a line for each; collective."""
    lines = []
    for name, ranks in run.tables.load().items():
        asked = [rank.requests for rank in ranks]
        rows = ", ".join(f"{rank.rows:,}" for rank in ranks)
        imbalance = max(asked) * len(asked) / max(sum(asked), 1)
        lines.append(f"table {name}: {rows} rows a rank; most requests on one rank {imbalance:.3f} x the mean")
    return lines


def describe_end(run: Run) -> str:
    """Where training ended, why, and which step is tested."""
    progress, config = run.progress, run.config.evaluation
    early = f"early: no better one in {progress.evaluations_since_best} evaluations, " if progress.stopped else ""
    tested = "the last, since no best one is known"
    if progress.best_value is not None:
        value = f"valid {config.metric} {progress.best_value:.4f}, {config.protocol}"
        tested = f"the best, step {progress.best_step} ({value})"
    return f"ended {early}after step {progress.step}; tested is {tested}"


def describe(run: Run) -> list[str]:
    """What is about to be trained, on what, in a few lines."""
    store, world, config = run.store, run.world, run.config
    batch = config.train.global_batch_size
    dense = sum(p.numel() for p in run.model.parameters())
    tables = ", ".join(f"{s.spec.name} {s.spec.rows:,} x {s.spec.dim}" for s in run.tables.shards.values())
    dropped = f" ({run.sampler.num_dropped:,} dropped: too short)" if run.sampler.num_dropped else ""
    return [
        f"data    {store.path}: {len(run.sampler.users):,} training users{dropped}, {store.num_item_rows - 1:,} items",
        f"model   {config.model.name}: {dense:,} dense parameters; tables {tables}, {config.tables.optimizer}",
        f"ranks   {world.size} on {world.device.type}, {run.dense.strategy}, global batch {batch}",
    ]
