"""The optimizer of the dense network."""

from collections.abc import Iterable

import torch
from torch import nn

from eupmim_dist.config.schema import TrainConfig


def make_dense_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """`adam`: with l2 as a term of the loss, as the authors train; `adamw`: with decoupled weight decay instead."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    return torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=config.l2, fused=True)
