"""The optimizer of the dense network."""

from torch import nn, optim

from eupmim_dist.config.schema import TrainConfig
from eupmim_dist.parallel.dense import TIMES


def make_dense_optimizer(model: nn.Module, config: TrainConfig, rates: dict[str, float]) -> optim.Optimizer:
    """`adam`: with l2 as a term of the loss, as the authors train; `adamw`: with decoupled weight decay instead.

    `rates` has the parameters whose learning rate is a multiple of the others', by name.
    """
    of_rate: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        of_rate.setdefault(rates.get(name, 1.0), []).append(parameter)
    groups = [
        {"params": parameters, "lr": times * config.learning_rate, TIMES: times}
        for times, parameters in of_rate.items()
    ]
    if config.optimizer == "adamw":
        return optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    return optim.Adam(groups, weight_decay=config.l2, fused=True)
