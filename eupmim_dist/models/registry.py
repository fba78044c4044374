"""Model name -> class; a configuration's `model.name` picks one."""

from eupmim_dist.config.schema import ComiRecConfig, EUPMiMConfig
from eupmim_dist.models.comirec.model import ComiRec
from eupmim_dist.models.eupmim.model import EUPMiM
from eupmim_dist.models.interface import DataShape, Recommender


def build_model(config: EUPMiMConfig | ComiRecConfig, shape: DataShape) -> Recommender:
    """The dense network; weights come from torch's default generator, so seed it alike on every rank."""
    if isinstance(config, EUPMiMConfig):
        return EUPMiM(config, shape)
    return ComiRec(config, shape)
