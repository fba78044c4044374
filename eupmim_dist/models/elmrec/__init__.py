"""ELMRec: a T5 that is asked in words, whose words for users and items carry their rows (EMNLP 2024)."""

from eupmim_dist.config.registry import Registered
from eupmim_dist.models.elmrec.config import ElmrecConfig
from eupmim_dist.models.elmrec.model import Elmrec

MODEL = Registered(ElmrecConfig, Elmrec)
