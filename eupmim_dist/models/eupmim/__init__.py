"""E-UPMiM ("Beyond Preferences", ISCAS 2025)."""

from eupmim_dist.config.registry import Registered
from eupmim_dist.models.eupmim.config import EUPMiMConfig
from eupmim_dist.models.eupmim.model import EUPMiM
from eupmim_dist.models.eupmim.release import EUPMiMRelease

MODEL = Registered(EUPMiMConfig, EUPMiM, EUPMiMRelease())
