"""What sharded tables are measured against: TorchRec, and a replicated nn.Embedding under DDP.

n ids a step on this rank, D the table's width, W ranks.
"""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from eupmim_dist.bench.gauges import Stopwatch
from eupmim_dist.parallel.memory import lack_of_memory
from eupmim_dist.parallel.world import World

OptimizerName = Literal["exact", "lazy_adam", "rowwise_adagrad", "sgd"]
NAME = "table"
LEARNING_RATE = 0.01
EPS = 1e-8


@dataclass(frozen=True)
class Shape:
    """One table and what a rank asks of it in a step."""

    rows: int
    dim: int
    num_samples: int
    ids_per_sample: int

    @property
    def num_ids(self) -> int:
        return self.num_samples * self.ids_per_sample


class Unavailable(Exception):
    """A system cannot run here; the message says why."""


class System(ABC):
    """Look-up (forward), gradient of the rows (backward) and update of one table, on prepared ids."""

    title: str
    slow = False
    """A step may take seconds: a few have to do."""

    def __init__(self, gradient: Tensor, world: World) -> None:
        """`gradient` of the n looked-up rows, [n, D]."""
        self.watch = Stopwatch(world.device)
        self.gradient = gradient

    @abstractmethod
    def prepare(self, ids: Tensor) -> Any:
        """What `step` takes for int64 ids [samples, ids per sample] on the CPU; not part of a step."""

    @abstractmethod
    def step(self, prepared: Any) -> None:
        """Forward, backward with the gradient of n rows, update; marks its phases on the watch."""

    def steps(self, prepared: Sequence[Any]) -> Iterator[None]:
        """Makes one step after another, each when the next value is asked for."""
        for ids in prepared:
            yield self.step(ids)


class ReplicatedTable(System):
    """nn.Embedding on every rank under DDP (as it is on a single rank), with an optimizer of torch.

    Sparse gradients are the faster ones, since only touched rows travel, but NCCL cannot sum them and `exact` moves
    every row.
    """

    def __init__(self, shape: Shape, gradient: Tensor, optimizer: OptimizerName, world: World, dense: bool) -> None:
        super().__init__(gradient, world)
        dense = dense or optimizer == "exact" or (world.size > 1 and world.device.type == "cuda")
        self.title = f"{'DDP' if world.size > 1 else 'nn.Embedding'} {'dense' if dense else 'sparse'}"
        _refuse_if_too_large(shape, world, copies=4 if dense else 2)
        self.slow, self._device = dense, world.device
        table = nn.Embedding(shape.rows, shape.dim, sparse=not dense, device=world.device)
        self._model: nn.Module = table
        if world.size > 1:
            self._model = nn.parallel.DistributedDataParallel(table, gradient_as_bucket_view=dense)
        self._optimizer = _torch_optimizer(optimizer, table.weight, dense)

    def prepare(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        # DDP divides the values of a sparse gradient by W in place, so each step gets its own, made beforehand.
        divided = isinstance(self._model, nn.parallel.DistributedDataParallel) and not self.slow
        return ids.flatten().to(self._device), self.gradient.clone() if divided else self.gradient

    def step(self, prepared: tuple[Tensor, Tensor]) -> None:
        ids, gradient = prepared
        self.watch.start()
        rows = self._model(ids)
        self.watch.mark("forward")
        rows.backward(gradient)
        self.watch.mark("backward")
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=not self.slow)  # a dense one is a view of DDP's bucket, which stays
        self.watch.mark("update")


def _torch_optimizer(name: OptimizerName, weight: Tensor, dense: bool) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD([weight], lr=LEARNING_RATE)
    if name == "rowwise_adagrad":  # torch has it by element only
        torch.sparse.check_sparse_tensor_invariants.disable()  # the default, but torch warns if it is not said
        return torch.optim.Adagrad([weight], lr=LEARNING_RATE, eps=EPS, fused=dense and weight.is_cpu)
    if dense:
        return torch.optim.Adam([weight], lr=LEARNING_RATE, eps=EPS, fused=True)
    return torch.optim.SparseAdam([weight], lr=LEARNING_RATE, eps=EPS)


def _refuse_if_too_large(shape: Shape, world: World, copies: int) -> None:
    if lack := lack_of_memory(copies * shape.rows * shape.dim * 4, world.device, world):
        raise Unavailable(f"a whole table {lack}")


Variant = Literal["", "dedup", "bags"]


def load_torchrec() -> None:
    """Imports TorchRec, which takes seconds and memory of its own."""
    # What it and torch warn of is about its own code.
    for module in ("torchrec", "fbgemm_gpu", "tensordict", r"torch\.distributed", r"torch\.jit"):
        warnings.filterwarnings("ignore", module=module)
    for name in ("torchrec", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import torchrec  # noqa: F401
    except ImportError as missing:
        if (missing.name or "").partition(".")[0] != "torchrec":
            raise Unavailable(f"TorchRec cannot be imported: {missing}") from missing
        raise Unavailable("TorchRec is not installed: see docs/benchmarks/torchrec-requirements.txt") from None


class TorchRec(System):
    """Row-wise sharding with the fused kernel and the optimizer in the backward pass.

    An EmbeddingCollection, on GPUs with use_index_dedup, for which FBGEMM has no CPU kernel. Two variants, neither
    of which TorchRec offers on CPUs, where they can be faster:
    `dedup`: use_index_dedup, with a kernel that this benchmark supplies on CPUs.
    `bags`: an EmbeddingBagCollection with bags of one id. On CPUs its kernel for the update is another, but its
    sharder leaves out row-wise sharding, so the plan is made by hand.
    """

    def __init__(
        self, shape: Shape, gradient: Tensor, optimizer: OptimizerName, world: World, variant: Variant
    ) -> None:
        super().__init__(gradient, world)
        load_torchrec()
        import torchrec
        from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

        self.title = f"TorchRec {variant}" if variant else "TorchRec"
        self._jagged, self._device, self._bags = torchrec.KeyedJaggedTensor, world.device, variant == "bags"
        if not dist.is_initialized():  # it needs a group even for a single rank
            backend = "gloo" if world.device.type == "cpu" else "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        if variant == "dedup" and world.device.type == "cpu":
            _supply_dedup_kernel()

        kind = torchrec.EmbeddingBagConfig if self._bags else torchrec.EmbeddingConfig
        table = kind(name=NAME, embedding_dim=shape.dim, num_embeddings=shape.rows, feature_names=[NAME])
        collection = torchrec.EmbeddingBagCollection if self._bags else torchrec.EmbeddingCollection
        module = collection(tables=[table], device=torch.device("meta"))
        apply_optimizer_in_backward(*_torchrec_optimizer(optimizer, module, world.device))
        self._model = _sharded(module, shape, world, dedup=variant == "dedup" or world.device.type == "cuda")

    def prepare(self, ids: Tensor) -> Any:
        samples, each = (ids.numel(), 1) if self._bags else ids.shape
        lengths = torch.full((samples,), each, dtype=torch.int32)
        jagged = self._jagged(keys=[NAME], values=ids.flatten(), lengths=lengths)
        return jagged.to(self._device).sync()  # what it would otherwise work out in the step

    def step(self, prepared: Any) -> None:
        self.watch.start()
        found = self._model(prepared)
        rows = found.values() if self._bags else found[NAME].values()
        self.watch.mark("forward")
        rows.backward(self.gradient)
        self.watch.mark("backward and update")


def _torchrec_optimizer(
    name: OptimizerName, module: nn.Module, device: torch.device
) -> tuple[type, Any, dict[str, float]]:
    from torchrec.optim import RowWiseAdagrad

    classes = {"rowwise_adagrad": RowWiseAdagrad, "sgd": torch.optim.SGD}
    if device.type == "cuda":
        classes["lazy_adam"] = torch.optim.Adam
    if name not in classes:
        raise Unavailable(f"TorchRec: no optimizer on {device.type} that does what {name} does")
    settings = {"lr": LEARNING_RATE} if name == "sgd" else {"lr": LEARNING_RATE, "eps": EPS}
    return classes[name], module.parameters(), settings


def _sharded(module: nn.Module, shape: Shape, world: World, dedup: bool) -> nn.Module:
    from torchrec import EmbeddingCollection
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ShardingEnv, ShardingPlan

    class RowWiseBagSharder(EmbeddingBagCollectionSharder):
        def sharding_types(self, compute_device_type: str) -> list[str]:
            return ["row_wise"]

    group = dist.group.WORLD
    if isinstance(module, EmbeddingCollection):
        sharder = EmbeddingCollectionSharder(use_index_dedup=dedup)
        topology = Topology(world_size=world.size, local_world_size=world.local_size, compute_device=world.device.type)
        constraints = ParameterConstraints(
            sharding_types=["row_wise"], compute_kernels=["fused"], pooling_factors=[shape.ids_per_sample]
        )
        planner = EmbeddingShardingPlanner(
            topology=topology,
            batch_size=shape.num_samples,
            constraints={NAME: constraints},
            storage_reservation=FixedPercentageStorageReservation(0.0),
        )
        plan = planner.collective_plan(module, [sharder], group)
    else:
        sharder = RowWiseBagSharder()
        rule = {NAME: row_wise(compute_kernel="fused")}
        device = world.device.type
        of_module = construct_module_sharding_plan(module, rule, sharder, world.local_size, world.size, device)
        plan = ShardingPlan(plan={"": of_module})
    return DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(group),
        device=world.device,
        plan=plan,
        sharders=[sharder],
        init_data_parallel=False,
    )


_supplied: list[torch.library.Library] = []


def _supply_dedup_kernel() -> None:
    """A CPU kernel of fbgemm::jagged_unique_indices for one table, where FBGEMM has none.

    As in its CUDA kernel, the distinct ids are spread over the samples evenly, which only the sum of lengths
    matters for.
    """

    def unique_indices(_sums: Tensor, _hashes: Tensor, offsets: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
        unique, inverse = torch.unique(indices, return_inverse=True)
        spread = torch.arange(len(offsets)) * len(unique) // (len(offsets) - 1)
        return spread.diff(), spread, unique, inverse

    if not _supplied:
        library = torch.library.Library("fbgemm", "IMPL")
        library.impl("jagged_unique_indices", unique_indices, "CPU")
        _supplied.append(library)
