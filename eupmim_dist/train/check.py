"""Whether a model, an objective and a task fit together, which may be of three packages; asked before a run begins.

A model that gives queries of another shape would train, and fail at the first evaluation. B samples, P predictions per
sample, K interests, D dim.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from eupmim_dist.config.registry import names, reason
from eupmim_dist.config.schema import Config
from eupmim_dist.data.batch import Batch, UserBatch
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import ITEM_TABLE, USER_TABLE, Encoded, Model, Rows, TableSpec, Uses
from eupmim_dist.objectives.interface import Objective
from eupmim_dist.tasks.interface import Task

NUM_SAMPLES = 2
TAKEN = ("cross_entropy", "l2", "norm", "used")
"""Names of other parts of the loss, and of what train/hooks.py sums beside them."""


def check_parts(config: Config, store: InteractionStore, model: Model, objective: Objective, task: Task) -> None:
    """Raises UserError, in one line that names the part to mend, unless the parts fit each other and the store.

    Each is asked what the first step asks it, of few samples; the model also what an evaluation asks it.
    """
    of_model, of_objective, of_task = (
        f"{kind} {getattr(config, kind).name}" for kind in ("model", "objective", "task")
    )
    _check_state(of_model, model, of_objective, objective)
    with _asking(of_task):
        batch, *_ = [task.sample(step).samples(0, NUM_SAMPLES) for step in range(task.num_kinds)]
        users = store.users("valid")[:NUM_SAMPLES]
        to_rank = task.to_rank(users, store.evaluation_window(users, "valid")[0])
    for name, part in ((of_model, model), (of_objective, objective)):
        if not isinstance(batch, part.batch_type):
            raise UserError(
                f"{name}: is fed with {part.batch_type.__name__}, and {of_task} gives {type(batch).__name__}; choose "
                "another task.name"
            )
    if isinstance(batch, UserBatch) and batch.position.shape[1] > 1 and not model.causal:
        raise UserError(
            f"{of_task}: asks for {batch.position.shape[1]} predictions of a sample, and {of_model} is not causal; "
            "Setting.causal tells a task so"
        )
    with _asking(of_model):
        tables = {spec.name: spec for spec in model.tables()}
        if len(policies := {spec.untrained for spec in tables.values() if spec.id_map == "users"}) > 1:
            raise UserError(f"{of_model}: its tables of users differ in `untrained` ({', '.join(policies)}); use one")
        _check_item_table(of_model, model, tables, store)
        _check_users(of_model, model, store)
        _check_propagation(of_model, model, tables, task, store)
        uses = model.uses(batch)
        _check_uses(of_model, uses, tables, len(batch))
    with _asking(of_objective):
        candidates = objective.draw(batch, 0)
        _check_uses(of_objective, candidates.uses(), tables, None)
    if both := uses.keys() & candidates.uses().keys():
        raise UserError(f"{of_model}: its use {min(both)!r} has the name of one of {of_objective}; call it otherwise")
    _check_queries(of_model, model, tables, to_rank)
    encoded = _check_queries(of_model, model, tables, batch)
    if not objective.whole_catalogue:  # which would be all ranks' together
        with _asking(of_objective), torch.no_grad():
            shares = objective(encoded, _zeros(uses | candidates.uses(), tables), batch, candidates, None)
            _check_parts_of_loss(f"{of_objective}: its part", shares, TAKEN[1:])


def _check_state(of_model: str, model: Model, of_objective: str, objective: Objective) -> None:
    if not any(True for _ in model.parameters()):
        raise UserError(
            f"{of_model}: has no parameters, and the optimizer of the dense network needs some; give it one, such as "
            "a factor of its queries"
        )
    if kept := model.state_dict().keys() & dict(model.named_buffers()).keys():
        raise UserError(
            f"{of_model}: its buffer {min(kept)} would be in no checkpoint; make it a parameter, or register it with "
            "persistent=False if it follows from the configuration"
        )
    parameters = dict(model.named_parameters())
    for name, times in model.learning_rates().items():
        if name not in parameters or not times > 0:
            raise UserError(
                f"{of_model}: its learning rate of {name}, {times} times the others', is of no parameter or not above "
                f"0; there are {', '.join(parameters)}"
            )
    if model.scorer not in names("scorer"):
        raise UserError(
            f"{of_model}: is ranked by a scorer {model.scorer!r}, which there is not; choose from "
            f"{', '.join(names('scorer'))}"
        )
    if own := dict(objective.named_parameters()):
        raise UserError(f"{of_objective}: its parameter {min(own)} would not be trained; weights are a model's matter")


def _check_item_table(of_model: str, model: Model, tables: dict[str, TableSpec], store: InteractionStore) -> None:
    spec = tables.get(ITEM_TABLE)
    if spec is None:
        if model.scorer != "interests":
            return
        raise UserError(f"{of_model}: has no table {ITEM_TABLE}, which is what is ranked")
    found = spec.rows, spec.dim, spec.padding_row, spec.id_map
    if found != (expected := (store.num_item_rows, model.dim, 0, "items")):
        raise UserError(
            f"{of_model}: its table {ITEM_TABLE} has rows, dim, padding_row and id_map {found} and not {expected}; "
            "make it by item_table(shape, dim)"
        )


def _check_users(of_model: str, model: Model, store: InteractionStore) -> None:
    if model.only_known_users and not store.train_lengths(store.users("test")).any():
        raise UserError(
            f"{of_model}: knows a user by his row alone, and {store.path} ({store.split_rule}) trains on none of the "
            "users that it tests; prepare it with --split leave_one_out, or choose another model.name"
        )


def _check_propagation(
    of_model: str, model: Model, tables: dict[str, TableSpec], task: Task, store: InteractionStore
) -> None:
    if (propagation := model.propagation()) is None:
        return
    spec, expected = tables.get(USER_TABLE), (store.num_users, model.dim, "users")
    if spec is None or (spec.rows, spec.dim, spec.id_map) != expected:
        raise UserError(
            f"{of_model}: propagates rows of users and items, and has no table {USER_TABLE} with rows, dim and id_map "
            f"{expected}"
        )
    if propagation.mask_targets:
        task.predicted(0)


def _check_uses(owner: str, uses: Uses, tables: dict[str, TableSpec], num_samples: int | None) -> None:
    """Look-ups of tables there are, by int64 ids; by some for each sample, if their number is given."""
    for name, (table, ids) in uses.items():
        if table not in tables:
            raise UserError(
                f"{owner}: its use {name!r} is of a table {table}, which the model does not have; there are "
                f"{', '.join(tables)}"
            )
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
            found = str(ids.dtype).removeprefix("torch.") if isinstance(ids, Tensor) else type(ids).__name__
            raise UserError(f"{owner}: the ids of its use {name!r} are {found}; make them a tensor of int64")
        if num_samples is not None and ids.shape[:1] != (num_samples,):
            raise UserError(
                f"{owner}: the ids of its use {name!r} are {list(ids.shape)} for {num_samples} samples; put the "
                "samples first"
            )


@torch.no_grad()
def _check_queries(of_model: str, model: Model, tables: dict[str, TableSpec], batch: Batch) -> Encoded:
    """[B * P, K, D], of rows of zeros: only the shape is looked at."""
    with _asking(of_model):
        training = model.training
        model.eval()
        encoded = model(_zeros(model.uses(batch), tables), batch)
        model.train(training)
        if not isinstance(encoded, Encoded):
            raise UserError(f"{of_model}: encode gives a {type(encoded).__name__}; make it an Encoded")
        number = batch.position.numel() if isinstance(batch, UserBatch) else len(encoded.queries)
        expected = [number, model.num_interests, model.dim]
    if (found := list(encoded.queries.shape)) != expected:
        raise UserError(
            f"{of_model}: its queries are {found} and not {expected}: one for each of the {number} predictions, "
            "of K interests by D numbers"
        )
    _check_parts_of_loss(f"{of_model}: its penalty", encoded.penalties, TAKEN)
    return encoded


def _check_parts_of_loss(told: str, parts: dict[str, Tensor], taken: Sequence[str]) -> None:
    for name, value in parts.items():
        if name in taken or value.dim():
            problem = "has a name that is taken" if name in taken else f"is {list(value.shape)} and not a number"
            raise UserError(f"{told} {name!r} {problem}")


def _zeros(uses: Uses, tables: dict[str, TableSpec]) -> Rows:
    return {use: torch.zeros(*ids.shape, tables[table].dim) for use, (table, ids) in uses.items()}


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """What somebody's code raises that has not met these others before, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = f"{what}: failed when it was tried ({reason(error)})"
        raise UserError(f"{told}; `eupmim-dist --debug` shows where") from error
