"""What a check found: a verdict and, where something is wrong, its mend."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    check: str
    verdict: Verdict
    found: str
    mend: str = ""


def passed(check: str, found: str) -> Finding:
    return Finding(check, "PASS", found)


def warned(check: str, found: str, mend: str) -> Finding:
    return Finding(check, "WARN", found, mend)


def failed(check: str, found: str, mend: str) -> Finding:
    return Finding(check, "FAIL", found, mend)


def failed_as_told(check: str, message: str) -> Finding:
    """Of a message as errors have it: what is wrong; the mend."""
    found, _, mend = message.rpartition("; ")
    return Finding(check, "FAIL", found or mend, mend if found else "")
