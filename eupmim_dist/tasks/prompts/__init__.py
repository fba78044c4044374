"""prompts: a language model is asked in words, and learns to write the answer, of several kinds in turn."""

from eupmim_dist.config.registry import Registered
from eupmim_dist.tasks.prompts.config import PromptsConfig
from eupmim_dist.tasks.prompts.task import Prompts

TASK = Registered(PromptsConfig, Prompts)
