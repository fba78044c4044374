"""Pages of a CPU's memory."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from eupmim_dist.parallel.pages import KEPT_BYTES

HEAP = """
from pathlib import Path
from eupmim_dist.parallel.pages import keep_freed_memory
keep_freed_memory()
print(Path("/proc/self/smaps").read_text())
"""


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
@pytest.mark.parametrize("limit", ["", "import resource; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))"])
def test_half_of_what_is_kept_is_advised_to_be_of_huge_pages_unless_addresses_are_limited(limit: str) -> None:
    code = [sys.executable, "-c", limit + HEAP]
    maps = subprocess.run(code, capture_output=True, text=True, check=True, timeout=60).stdout
    advised = 0
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", maps):
        size, flags = re.search(r"^Size: +(\d+) kB", mapping, re.M), re.search(r"^VmFlags: (.*)", mapping, re.M)
        assert size
        assert flags
        if "[heap]" in mapping and "hg" in flags[1].split():
            advised += int(size[1]) << 10
    assert advised == 0 if limit else KEPT_BYTES // 2 <= advised < KEPT_BYTES
