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
    mistake: bool = True
    """Of what fails: whether it is the user's to set right, as a training that is refused for it is (exit code 2)."""


def passed(check: str, found: str) -> Finding:
    return Finding(check, "PASS", found)


def warned(check: str, found: str, mend: str) -> Finding:
    return Finding(check, "WARN", found, mend)


def failed(check: str, found: str, mend: str, *, mistake: bool = True) -> Finding:
    return Finding(check, "FAIL", found, mend, mistake)


def failed_as_told(check: str, message: str) -> Finding:
    """Of a message as errors have it: what is wrong; the mend."""
    found, _, mend = message.rpartition("; ")
    return Finding(check, "FAIL", found or mend, mend if found else "")
