import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# torch asks for the names of the addresses that it connects to; where no name server answers, that takes 5 s.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of published data sets; skips where there is none."""
    named = os.environ.get("EUPMIM_SHARED")
    shared = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not (shared / "data").is_dir():
        pytest.skip(f"no published data: {shared / 'data'} does not exist (EUPMIM_SHARED names another place)")
    return shared / "data"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch's: sums in one order, and the speed of small things."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
