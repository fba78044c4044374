"""What figures were made by: the processor, and the commit of this program."""

import os
import platform
import subprocess
from pathlib import Path

import torch


def cpu_name() -> str:
    """Model and number of cores."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


def device_name(device: torch.device) -> str:
    """The GPU's, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def commit() -> str:
    """Of the working tree that this program runs from, such as `1a2b3c4d5e6f-dirty`; `unknown` where it is none."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
