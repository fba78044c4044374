"""The dense network under Accelerate: replicated, its gradients averaged over the ranks by DDP."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.state import PartialState
from accelerate.utils import patch_environment
from torch import Tensor, nn

from eupmim_dist.errors import UserError
from eupmim_dist.parallel.catalogue import ShardedCatalogue
from eupmim_dist.parallel.lookup import Lookup, RowGradients
from eupmim_dist.parallel.verdict import Verdict
from eupmim_dist.parallel.world import World

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
MOMENTS = ("exp_avg", "exp_avg_sq")
TIMES = "times"
"""Of a group of Adam's parameters: by what its learning rate is a multiple of train.learning_rate."""


class Dense:
    """A model's dense part, prepared for the world, and its optimizer; `make_dense` (parallel/zero.py) chooses.

    `model` is the network itself (for ranking, saving), `module` what a training step calls.
    """

    partitioned = False
    """Whether `gradients` are this rank's part of the averaged ones, and not all of them."""

    def __init__(self, loss: nn.Module, model: nn.Module, adam: torch.optim.Optimizer, world: World) -> None:
        """`loss` is a module around `model`, which has all its parameters; `adam` is Adam or AdamW over them, fused,
        with TIMES in each group (optim/dense.py)."""
        self.world = world
        self.model = model
        self.accelerator = self._accelerator()
        if self.accelerator.mixed_precision == "fp16":
            raise UserError("mixed precision fp16 is not supported; use bf16 or no")
        if self.accelerator.gradient_accumulation_steps != 1:
            raise UserError(
                "Accelerate was told of gradient accumulation (gradient_accumulation_steps): set train.accumulation "
                "instead"
            )
        self.adam: Any = adam
        module, self.optimizer = self._prepare(loss)
        self.module: nn.Module = module

    @property
    def strategy(self) -> str:
        """How the ranks share the work, for the log."""
        return "DDP" if self.world.size > 1 else "one copy"

    def _accelerator(self) -> Accelerator:
        if PartialState._shared_state and (held := PartialState().device.type) != self.world.device.type:
            raise UserError(
                f"this process uses Accelerate on {held} already, which keeps to it: train on {self.world.device.type} "
                "in another one (in a notebook, restart the kernel)"
            )
        kwargs = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        accelerator = Accelerator(cpu=self.world.device.type == "cpu", kwargs_handlers=[kwargs])
        if accelerator.distributed_type not in SUPPORTED:
            raise UserError(
                f"Accelerate was told to use {accelerator.distributed_type.value}; only data-parallel training "
                "and DeepSpeed are supported: use a configuration of configs/accelerate"
            )
        return accelerator

    def _prepare(self, loss: nn.Module) -> tuple[Any, Any]:
        # Else Accelerate tells DDP of GPU number LOCAL_RANK, which a rank that sees its own alone does not have.
        with patch_environment(ACCELERATE_BYPASS_DEVICE_MAP="true"):
            return self.accelerator.prepare(loss, self.adam)

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: the ranks average gradients in the last one only."""
        return nullcontext() if last else self.accelerator.no_sync(self.module)

    # The two places for the scale of gradients (design 3.1). The loss is the sum of the ranks' shares: DDP averages
    # dense gradients over the ranks, so a share is multiplied by W; row gradients arrive as sums, so they are
    # divided by W.

    def backward(self, loss_share: Tensor) -> None:
        """Adds the gradients of this rank's share of the global loss; collective in the last micro-batch."""
        self.accelerator.backward(loss_share * self.world.size)

    def row_gradients(self, lookup: Lookup, catalogue: ShardedCatalogue | None = None) -> list[RowGradients]:
        """Gradients of the global loss for the rows looked up, and of a catalogue's; collective."""
        return lookup.gradients(1.0 / self.world.size, catalogue)

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def step(self, learning_rate: float, verdict: Verdict) -> None:
        """Adam's step, unless the verdict has it skipped."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate * group[TIMES]
        # What torch's GradScaler sets: the divisor of the gradients, and 1.0 where nothing may change.
        self.adam.grad_scale = None if verdict.factor is None else verdict.factor.reciprocal()
        self.adam.found_inf = (~verdict.ok).float()
        self._update()

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's moments as `<moment>.<parameter>`; zeros before the first step."""
        state = {}
        for name, parameter in self.model.named_parameters():
            held = self.optimizer.state[parameter]
            for moment in MOMENTS:
                state[f"{moment}.{name}"] = held[moment] if moment in held else torch.zeros_like(parameter)
        return state

    def restore_optimizer(self, state: dict[str, Tensor], num_steps: int) -> None:
        """Takes what `optimizer_state` gave after `num_steps` steps."""
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(num_steps), device=parameter.device),
                **{moment: state[f"{moment}.{name}"] for moment in MOMENTS},
            }
