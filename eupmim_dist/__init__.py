"""eupmim_dist: distributed training of multi-interest recommenders with sharded embedding tables."""

__version__ = "0.1.0"
