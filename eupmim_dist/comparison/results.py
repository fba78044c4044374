"""What a comparison gives, and the files it leaves: `comparison.json` and `comparison.md`."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import polars as pl

from eupmim_dist.comparison.rows import Row
from eupmim_dist.comparison.text import cost, heading, in_lines, in_one_line, markdown, quality
from eupmim_dist.evaluation.baselines import histories_read
from eupmim_dist.evaluation.protocols import EXPLANATION, SEEN_INCLUDED
from eupmim_dist.files import write_text

JSON_FILE, MARKDOWN_FILE = "comparison.json", "comparison.md"


@dataclass(frozen=True, repr=False)
class Comparison:
    """Models side by side; the same on all ranks."""

    rows: list[Row]
    """Best first, by the first figure; none if not finished."""
    split: str
    protocol: str
    top_n: int | None
    """None of what is no list."""
    users: int
    """How many are judged; of elmrec_explanation, how many explanations."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """Store, seeds, versions and machine; the command line, if it was one."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a configuration has no row: its training diverged."""
    seen_included: bool = False
    """As of a result (evaluation/runner.py)."""
    finished: bool = True
    """False if a training was asked to stop (Ctrl-C, SIGTERM): the same call goes on with it."""

    @property
    def title(self) -> str:
        cutoff = "" if self.top_n is None else f"N = {self.top_n}, "
        seen = f", {SEEN_INCLUDED}" if self.seen_included else ""
        return f"{self.split} split, protocol {self.protocol}{seen}, {cutoff}{self.users:,} {self.counted}"

    @property
    def counted(self) -> str:
        """What `users` counts."""
        return "explanations" if self.protocol == EXPLANATION else "users"

    @property
    def notes(self) -> list[str]:
        """How to read the figures."""
        deviation = "; ± is the standard deviation over seeds" if any(len(row.seeds) > 1 for row in self.rows) else ""
        lines = [f"Ranges are 95 % bootstrap intervals over {self.counted}{deviation}."]
        if self.counted != "users":
            lines.append("Explanations count as drawn one by one; a user's are like each other, so all is less sure.")
        if len(self.rows) > 1:
            lines.append(
                f"p: paired randomisation test of {heading(next(iter(self.rows[0].figures)))} against the best, over "
                f"{self.counted}, Holm-corrected for {len(self.rows) - 1}."
            )
        if read := histories_read({row.model: row.history for row in self.rows}):
            lines.append(read)
        return lines + [f"{name} has no row: {reason}." for name, reason in self.failed.items()]

    def frame(self) -> pl.DataFrame:
        """A row for each model, with every figure: recall, recall_low, recall_high, recall_std and so on."""
        return pl.DataFrame([_flat(row) for row in self.rows], infer_schema_length=None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        content = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "finished"}
        return {"protocol": self.protocol, **content, "rows": [row.as_dict() for row in self.rows]}

    def write(self, directory: Path) -> None:
        """Raises UserError where it cannot be written."""
        write_text(directory / JSON_FILE, json.dumps(self.as_dict(), indent=1) + "\n")
        write_text(directory / MARKDOWN_FILE, self.markdown())

    def markdown(self) -> str:
        """Both tables, how to read them, and what they were made by."""
        made = {"command": "`" + self.made_by["command"] + "`"} if self.made_by.get("command") else {}
        made |= {key: value for key, value in self.made_by.items() if key not in ("command", "store")}
        made["store"] = "{name}, fingerprint {fingerprint}".format(**self.made_by["store"])
        told = "".join(f"- {key.replace('_', ' ')}: {_plain(value)}\n" for key, value in made.items() if value)
        parts = [f"# {self.title}\n", markdown(quality(self.rows, in_one_line)), markdown(cost(self.rows))]
        return "\n".join([*parts, " ".join(self.notes) + "\n", told])

    def _shown(self) -> pl.DataFrame:
        pairs = zip(quality(self.rows, lambda *of: " ".join(in_lines(*of).split())), cost(self.rows), strict=True)
        return pl.DataFrame([good | costly for good, costly in pairs])

    def __repr__(self) -> str:
        if not self.finished:
            return "Comparison(not finished: the same call goes on)"
        with pl.Config(tbl_width_chars=250, **_WHOLE):
            return f"{self.title}\n{self._shown()}"

    def _repr_html_(self) -> str:
        if not self.finished:
            return repr(self)
        with pl.Config(**_WHOLE):
            return f"{self.title}{self._shown()._repr_html_()}"


_WHOLE: dict[str, Any] = {
    "tbl_rows": -1,
    "tbl_cols": -1,
    "fmt_str_lengths": 60,
    "tbl_hide_dataframe_shape": True,
    "tbl_hide_column_data_types": True,
}
"""How polars shows all of a frame."""


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.as_dict().items():
        if name in row.figures:
            flat[name] = value["mean"]
            flat |= {f"{name}_{part}": value[part] for part in ("low", "high", "std")}
        else:
            flat[name] = value
    return flat


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
