"""Configuration -> a run. The only file that sees every layer: read it first.

store      <- data.dir                       memory-mapped interactions
task       <- task                           what is predicted from what: samples, and users to rank for
model      <- model, sizes from the store    the dense network, alike on every rank
objective  <- objective                      the loss of the model's queries
tables     <- model.tables()                 item and user rows, a shard per rank
run        <- all of it, Accelerate and the optimizers
"""

from collections.abc import Callable
from pathlib import Path

import torch

from eupmim_dist.checkpoint.layout import resolve
from eupmim_dist.checkpoint.load import load_model, open_sound
from eupmim_dist.checkpoint.origin import check_same_data, data_dir_of
from eupmim_dist.config.registry import build
from eupmim_dist.config.schema import Config
from eupmim_dist.data.graph import InteractionGraph
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.judging import check_judged
from eupmim_dist.evaluation.scorers.interface import ITEM_BLOCK
from eupmim_dist.models.features import features_of, first_rows, trained_or_not
from eupmim_dist.models.interface import ITEM_TABLE, DataShape, Model
from eupmim_dist.objectives.interface import Objective
from eupmim_dist.optim.dense import make_dense_optimizer
from eupmim_dist.optim.tables import make_table_optimizer
from eupmim_dist.parallel import network
from eupmim_dist.parallel.agreement import agreed, at_work, check_alike
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import World
from eupmim_dist.parallel.zero import make_dense
from eupmim_dist.tasks.interface import Setting, Task
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.progress import in_bytes
from eupmim_dist.telemetry.trackers import check_trackers
from eupmim_dist.train.check import check_parts
from eupmim_dist.train.compiled import compile_network
from eupmim_dist.train.loss import Loss
from eupmim_dist.train.room import check_room, room_of
from eupmim_dist.train.state import Assembled, Progress, Run, Setup


def open_store(path: Path, world: World) -> InteractionStore:
    """Opens an interaction store, alike on all ranks; one rank of each node checks the files' hashes."""
    with agreed(world):
        store = InteractionStore.open(path, verify=world.local_rank == 0, on_bytes=at_work(world))
    check_alike(world, {"data": store.fingerprint[:12]}, f"{path} must hold the same store on all hosts")
    return store


def shape_of_data(config: Config, store: InteractionStore) -> DataShape:
    """What a model needs to know of a store."""
    return DataShape(
        num_users=store.num_users,
        num_item_rows=store.num_item_rows,
        attributes={attribute.name: attribute.cardinality for attribute in store.attributes},
        history_length=config.task.history_length,
        num_tokens=config.task.num_tokens(),
        num_words=config.task.num_words(),
    )


def _ranked(store: InteractionStore) -> tuple[int, int]:
    """The most users that an evaluation ranks for, and items that are scored at a time at the least."""
    return max(len(store.users(split)) for split in ("valid", "test")), ITEM_BLOCK


def make_model(config: Config, shape: DataShape) -> Model:
    """The dense network; its initial weights are a function of the seed."""
    torch.manual_seed(config.seed)
    model: Model = build("model", config.model.name, Model, config.model, shape)
    return model


def make_task(config: Config, world: World, store: InteractionStore, model: Model | None = None) -> Task:
    """What is predicted from what, as the model, if there is one, can be asked it."""
    setting = Setting(
        store=store,
        seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        causal=model is not None and model.causal,
        zero_untrained=model is not None and any(spec.untrained == "zero" for spec in model.tables()),
        rank=world.rank,
        world_size=world.size,
    )
    task: Task = build("task", config.task.name, Task, config.task, setting)
    return task


def without_model(config: Config, world: World, store: InteractionStore) -> Setup:
    """A store and a task, for baselines alone."""
    return Setup(config, world, store, make_task(config, world, store))


def assemble(config: Config, world: World, store: InteractionStore) -> Assembled:
    """A model with initial weights and its tables, to rank with."""
    _check_ranks(config, world)
    shape = shape_of_data(config, store)
    check_room(config, shape, store, _ranked(store), world, training=False)
    model = make_model(config, shape)
    return _with_tables(config, world, store, make_task(config, world, store, model), model, None)


def _with_tables(
    config: Config, world: World, store: InteractionStore, task: Task, model: Model, objective: Objective | None
) -> Assembled:
    whole = ITEM_TABLE if objective is not None and objective.whole_catalogue else None
    model.to(world.device)
    specs = trained_or_not(config.model, store, model.tables())
    features = features_of(config.model, store, specs)
    propagation = model.propagation()
    graph, num_layers = None, 0
    if propagation is not None:
        if propagation.graph.source == "published":
            get_logger(world.rank).warning(
                "model.graph: published holds much of what is held out, and figures made with it are those of a leak; "
                "set clean to compare with other models"
            )
        graph, num_layers = InteractionGraph(store, propagation.graph), propagation.num_layers
    tables = ShardedTables(specs, config.seed, world, config.tables, whole, features, graph, num_layers)
    return Assembled(config, world, store, task, model, tables)


def _check_ranks(config: Config, world: World) -> None:
    if config.world_size not in (None, world.size):
        raise UserError(
            f"world_size: the configuration is for {config.world_size} ranks and {world.size} were started; "
            f"use `eupmim-dist launch --nproc {config.world_size} -- ...`"
        )


def trainable(config: Config, world: World, store: InteractionStore) -> tuple[Model, Task, Objective]:
    """The parts of a training, without its tables. Raises UserError where it could not be made, or not be judged."""
    _check_ranks(config, world)
    check_trackers(config.telemetry.trackers)
    for split in ("valid", "test"):
        if not len(store.users(split)):
            raise UserError(f"{store.path}: split {split} has no users, so training could not be judged")
    shape = shape_of_data(config, store)
    check_room(config, shape, store, _ranked(store), world, training=True)
    model = make_model(config, shape)
    task = make_task(config, world, store, model)
    check_judged(config.evaluation, store, model, task)
    objective: Objective = build("objective", config.objective.name, Objective, config.objective, model, task)
    if objective.whole_catalogue and config.tables.memory == "host":
        raise UserError(
            f"tables.memory: host cannot serve objective {config.objective.name}, which needs every row in every step: "
            "use device, or objective.name=sampled_softmax"
        )
    if model.propagation() is not None and config.tables.memory == "host":
        raise UserError(
            f"tables.memory: host cannot serve model {config.model.name}, whose propagation needs every row in every "
            "step: use device"
        )
    check_parts(config, store, model, objective, task)
    return model, task, objective


def assemble_run(
    config: Config,
    world: World,
    store: InteractionStore,
    set_weights: Callable[[Assembled], None] = lambda initial: None,
) -> Run:
    """Everything a training needs, at step 0; `set_weights` may change the initial ones."""
    model, task, objective = trainable(config, world, store)
    base = _with_tables(config, world, store, task, model, objective)
    for name, rows in first_rows(config.model, store, model.tables()).items():
        base.tables.shards[name].start_as(rows)
    set_weights(base)  # before the dense network is handed to what may copy it
    rate, l2 = config.train.learning_rate, config.train.l2
    adam = make_dense_optimizer(model, config.train, model.learning_rates())
    compile_network(model, config.train, world)
    return Run(
        config=config,
        world=world,
        store=store,
        task=task,
        model=model,
        tables=base.tables,
        objective=objective,
        dense=make_dense(Loss(model, objective), model, adam, world),
        table_optimizer=make_table_optimizer(config.tables, base.tables, rate, l2),
        progress=Progress(),
    )


def load_trained(path: Path, world: World, data: Path | None = None, which: str = "best") -> Assembled:
    """A trained model from a run directory (its `best` or `last` checkpoint), a checkpoint or a model directory.

    `data` overrides the store's path, not its content: a store with another fingerprint is refused.
    """
    checkpoint = open_sound(lambda: resolve(path, which), world)
    config = checkpoint.config.model_copy(update={"world_size": None})
    with agreed(world):
        place = data or data_dir_of(config, path)
    store = open_store(place, world)
    with agreed(world):
        check_same_data(checkpoint, store)
        assembled = assemble(config, world, store)
    load_model(assembled, checkpoint)
    return assembled


def describe(run: Run) -> list[str]:
    """What is about to be trained, on what, in a few lines."""
    store, world, config = run.store, run.world, run.config
    batch, users = config.train.global_batch_size, run.task.training
    dense = sum(p.numel() for p in run.model.parameters())
    tables = ", ".join(f"{s.spec.name} {s.spec.rows:,} x {s.spec.dim}" for s in run.tables.shards.values())
    dropped = f" ({users.num_dropped:,} dropped: too short)" if users.num_dropped else ""
    return [
        f"data    {store.path}: {len(users):,} training users{dropped}, {store.num_item_rows - 1:,} items",
        f"task    {config.task.name}, objective {config.objective.name}",
        f"model   {config.model.label}: {dense:,} dense parameters",
        f"tables  {tables}; {config.tables.optimizer}",
        f"ranks   {world.size} on {world.device.type}, {run.dense.strategy}, global batch {batch}",
        *([f"network {network.described()}"] if world.size > 1 else []),
        *([f"exchange {exchange_of(config, world)}"] if config.tables.exchange != "flat" else []),
    ]


def exchange_of(config: Config, world: World) -> str:
    """How rows travel, which a node or a rank alone does not see."""
    if world.has_levels:
        return f"{config.tables.exchange}: {world.size // world.local_size} nodes of {world.local_size} ranks"
    where = "one node" if world.local_size == world.size else "one rank a node"
    return f"flat, which {config.tables.exchange} is with {where}"


def needed_room(config: Config, store: InteractionStore, world: World, *, training: bool = True) -> dict[str, int]:
    """Bytes that each rank needs at the least, by what for; without `training` to rank only."""
    return room_of(config, shape_of_data(config, store), store, _ranked(store), world, training=training)


def describe_room(run: Run) -> str:
    """The memory that each rank needs, as far as it is known before."""
    needed = needed_room(run.config, run.store, run.world)
    parts = ", ".join(f"{what.split()[-1]} {in_bytes(size)}" for what, size in needed.items())
    return f"memory  at least {in_bytes(sum(needed.values()))} a rank: {parts}"


def describe_load(run: Run) -> list[str]:
    """How evenly the ranks were asked for rows of the sharded tables, a line for each; collective."""
    lines = []
    for name, ranks in run.tables.load().items():
        asked = [rank.requests for rank in ranks]
        rows = ", ".join(f"{rank.rows:,}" for rank in ranks)
        if not sum(asked):  # a finished training that was gone on with
            continue
        imbalance = max(asked) * len(asked) / sum(asked)
        lines.append(f"table {name}: {rows} rows a rank; most requests on one rank {imbalance:.3f} x the mean")
    return lines


def describe_end(run: Run) -> list[str]:
    """Where training ended, why, and which step is tested."""
    progress, config = run.progress, run.config.evaluation
    early = f": early, no better one in {progress.evaluations_since_best} evaluations" if progress.stopped else ""
    if run.end_requested:
        early = ": early, a callback asked for it"
    tested = "the last, since no best one is known"
    if progress.best_value is not None:
        value = f"valid {config.protocol} {config.metric} {progress.best_value:.4f}"
        tested = f"the best, step {progress.best_step}: {value}"
    return [f"ended after step {progress.step}{early}", f"tested is {tested}"]
