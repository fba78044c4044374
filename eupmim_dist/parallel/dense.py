"""The dense network under Accelerate: replicated, its gradients averaged over the ranks by DDP."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn

from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import Recommender
from eupmim_dist.parallel.tables import Lookup, RowGradients
from eupmim_dist.parallel.world import World

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
MOMENTS = ("exp_avg", "exp_avg_sq")


class Dense:
    """A model's dense part, prepared for the world, and its Adam with L2.

    `model` is the network itself (for ranking, saving), `module` what a training step calls.
    """

    def __init__(self, model: Recommender, learning_rate: float, l2: float, world: World) -> None:
        kwargs = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        self.accelerator = Accelerator(cpu=world.device.type == "cpu", kwargs_handlers=[kwargs])
        if self.accelerator.mixed_precision == "fp16":
            raise UserError("mixed precision fp16 is not supported; use bf16 or no")
        if self.accelerator.distributed_type not in SUPPORTED:
            raise UserError(
                f"Accelerate was told to use {self.accelerator.distributed_type.value}; only data-parallel training "
                "is supported: use a configuration of configs/accelerate"
            )
        self.world = world
        self.model = model
        adam = torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=l2, fused=True)
        module, self.optimizer = self.accelerator.prepare(model, adam)
        self.module: nn.Module = module

    def backward(self, loss_share: Tensor, lookup: Lookup) -> dict[str, RowGradients]:
        """Gradients of the global loss, the sum of the ranks' `loss_share`; collective.

        The one place for the scale of gradients (design 3.1): DDP averages dense gradients over the ranks, so
        the share is multiplied by W; row gradients arrive as sums over the ranks, so they are divided by W.
        """
        num_ranks = self.world.size
        self.accelerator.backward(loss_share * num_ranks)
        return lookup.gradients(1.0 / num_ranks)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's moments as `<moment>.<parameter>`; zeros before the first step."""
        state = {}
        for name, parameter in self._parameters():
            held = self.optimizer.state[parameter]
            for moment in MOMENTS:
                state[f"{moment}.{name}"] = held[moment] if moment in held else torch.zeros_like(parameter)
        return state

    def restore_optimizer(self, state: dict[str, Tensor], num_steps: int) -> None:
        """Takes what `optimizer_state` gave after `num_steps` steps."""
        for name, parameter in self._parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(num_steps), device=parameter.device),
                **{moment: state[f"{moment}.{name}"] for moment in MOMENTS},
            }

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        names = [name for name, _ in self.model.named_parameters()]
        return zip(names, self.optimizer.param_groups[0]["params"], strict=True)
