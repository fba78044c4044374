"""The dense network under DeepSpeed, through Accelerate: ZeRO-1 and ZeRO-2.

Every rank holds the weights, and of Adam's state (ZeRO-1), of the averaged gradients too (ZeRO-2), its part alone.
Steps are judged and checkpoints written as without DeepSpeed, so its own clipping, accumulation, norm and files are
not used.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, patch_environment
from torch import Tensor, nn

from eupmim_dist.errors import UserError
from eupmim_dist.parallel.dense import MOMENTS, Dense
from eupmim_dist.parallel.world import World

SERVED = {
    "zero_optimization.stage",
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.allgather_partitions",
    "zero_optimization.contiguous_gradients",
    "zero_optimization.ignore_unused_parameters",
    "zero_optimization.overlap_comm",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.reduce_scatter",
    "zero_optimization.round_robin_gradients",
    "zero_optimization.use_multi_rank_bucket_allreduce",
    "bf16.enabled",
    "comms_logger",
    "flops_profiler",
    "log_level",
    "memory_breakdown",
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
}
"""What a DeepSpeed configuration may set; anything else must be off or `auto`."""
DEFAULTS = {"gradient_accumulation_steps": (1, "auto"), "managed_gradient_accumulation": (True,)}
"""What does nothing though it is not off."""
BATCH_SIZE = "set train.global_batch_size instead"
OFFLOAD = "the dense network is small; for large tables see tables.optimizer and tables.memory"
MENDS = {
    "gradient_accumulation_steps": "set train.accumulation instead",
    "gradient_clipping": "set train.clip_norm instead",
    "managed_gradient_accumulation": "set train.accumulation instead",
    "train_batch_size": BATCH_SIZE,
    "train_micro_batch_size_per_gpu": BATCH_SIZE,
    "optimizer": "Adam is used: set train.optimizer, train.learning_rate and train.l2 instead",
    "scheduler": "set train.schedule and train.warmup_steps instead",
    "fp16": "use bf16 or no mixed precision",
    "zero_optimization.offload_optimizer": OFFLOAD,
    "zero_optimization.offload_param": OFFLOAD,
}


class _Plugin(DeepSpeedPlugin):
    """Accelerate's, without what it does for networks of transformers, which would have to be installed."""

    def set_deepspeed_weakref(self) -> None:
        pass


def make_dense(loss: nn.Module, model: nn.Module, adam: torch.optim.Optimizer, world: World) -> Dense:
    """The dense part as the launcher asks for it: under DeepSpeed, or on its own."""
    asked = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true", "yes")
    return (ZeroDense if asked else Dense)(loss, model, adam, world)


class ZeroDense(Dense):
    """A dense part whose Adam state, and under ZeRO-2 gradients, are partitioned over the ranks."""

    partitioned = True

    def __init__(self, loss: nn.Module, model: nn.Module, adam: torch.optim.Optimizer, world: World) -> None:
        super().__init__(loss, model, adam, world)
        self.engine = cast(Any, self.module)
        self.zero = self.engine.optimizer
        # Adam would make its state in the first step; DeepSpeed finds parameters in it only once it is there.
        for part in self._parts():
            self.adam.state[part] = {
                "step": torch.zeros((), device=part.device),
                **{moment: torch.zeros_like(part) for moment in MOMENTS},
            }
        self.zero._lazy_init_hp_params_optimizer_state()

    @property
    def strategy(self) -> str:
        return f"DeepSpeed ZeRO-{self.engine.zero_optimization_stage()}"

    def _accelerator(self) -> Accelerator:
        if not dist.is_initialized():
            raise UserError("DeepSpeed needs a launcher, on one rank too: use `eupmim-dist launch --config-file ...`")
        # With its switch for CPUs on, Accelerate leaves DeepSpeed out; the world has chosen the device already.
        with as_user_error(), patch_environment(ACCELERATE_USE_CPU="false"):
            plugin = _Plugin()
            accelerator = Accelerator(deepspeed_plugin=plugin)
        adapt_config(plugin.deepspeed_config, sum(parameter.numel() for parameter in self.model.parameters()))
        return accelerator

    def _prepare(self, loss: nn.Module) -> tuple[Any, Any]:
        import deepspeed

        # A kernel for inference that training has no use of, compiled at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)  # DeepSpeed's
        device = self.world.device  # DeepSpeed takes GPU number LOCAL_RANK, which a rank may not see
        with as_user_error(), patch_environment(**({"LOCAL_RANK": device.index} if device.type == "cuda" else {})):
            return super()._prepare(loss)

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss_share: Tensor) -> None:
        self.engine.backward(loss_share * self.world.size)

    def gradients(self) -> list[Tensor]:
        return [gradient for parts in self.zero.averaged_gradients.values() for gradient in parts]

    def _update(self) -> None:
        self.engine.step()

    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's moments, whole, as `<moment>.<parameter>`; collective."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return {
            f"{moment}.{name}": safe_get_full_optimizer_state(parameter, moment)
            for name, parameter in self.model.named_parameters()
            for moment in MOMENTS
        }

    def restore_optimizer(self, state: dict[str, Tensor], num_steps: int) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        self.zero.refresh_fp32_params()  # Adam moves a copy of the weights, which have been set
        for part in self._parts():
            self.adam.state[part]["step"].fill_(num_steps)
        for name, parameter in self.model.named_parameters():
            for moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[f"{moment}.{name}"], moment)

    def _parts(self) -> list[Tensor]:
        return [part for group in self.adam.param_groups for part in group["params"]]


def adapt_config(config: dict[str, Any], num_parameters: int) -> None:
    """Sets in DeepSpeed's configuration what training here needs, in place.

    Raises:
        UserError: a key is set that would contradict it or have no effect.
    """
    file = _source()
    for key, value in _settings(config):
        if key not in SERVED and not (value in DEFAULTS[key] if key in DEFAULTS else _is_off(value)):
            mend = MENDS.get(key, "it is not supported: remove it")
            raise UserError(f"{file}: {key} is set; {mend}")
    if os.environ.get("ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES"):
        raise UserError(f"{file}: deepspeed_moe_layer_cls_names is set; no network here has experts: remove it")
    zero = config["zero_optimization"]
    if (stage := zero.get("stage")) not in (1, 2):
        raise UserError(
            f"{file}: zero_optimization.stage (zero_stage) is {stage}: use 1 or 2; 3 would partition the small dense "
            "network's weights as well, and the large tables are always partitioned"
        )
    for key in [key for key, value in zero.items() if value == "auto"]:
        del zero[key]
    # DeepSpeed sets this many elements aside for every backward pass, 500 million if it is not told.
    zero.setdefault("reduce_bucket_size", min(num_parameters, 50_000_000))
    zero["compute_grad_norm"] = False
    # Mixed precision as without DeepSpeed: weights and gradients stay float32, only the network computes in bfloat16.
    # DeepSpeed's own would make the weights bfloat16.
    if config["bf16"]["enabled"]:
        config["bf16"] = {"enabled": False}
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    config |= {
        "train_micro_batch_size_per_gpu": 1,  # for DeepSpeed's own reports; it must have one
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU in every step
    }


def _source() -> str:
    return os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "Accelerate's deepspeed_config")


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, content in config.items():
        if section in ("zero_optimization", "bf16"):
            yield from ((f"{section}.{key}", value) for key, value in content.items())
        else:
            yield section, content


def _is_off(value: Any) -> bool:
    if isinstance(value, dict):
        return not value or value.get("enabled") is False or value.get("device") == "none"
    return value in (None, False, 0, "auto")


@contextmanager
def as_user_error() -> Iterator[None]:
    """What Accelerate or DeepSpeed says of a configuration it refuses, in one line."""
    try:
        yield
    except (ValueError, AssertionError, NotImplementedError) as error:
        raise UserError(f"{_source()}: {' '.join(str(error).split())}") from error
