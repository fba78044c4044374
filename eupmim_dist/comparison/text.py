"""A comparison in words: two tables of short cells, for terminals, notebooks and Markdown."""

from collections.abc import Callable, Sequence

from eupmim_dist.comparison.rows import Figure, Row
from eupmim_dist.evaluation.generation.likeness import ROUGES
from eupmim_dist.telemetry.progress import duration

UNKNOWN = "-"
OTHERS = {"coverage": "{:.1%}", "diversity": "{:.3f}", "bleu_1": "{:.2f}", "bleu_4": "{:.2f}", "different": "{:.1%}"}
"""How those of Row.others are told."""

DIGITS = dict.fromkeys(ROUGES.values(), 2)
"""After the point, of what is in percent."""


def heading(name: str) -> str:
    return name.replace("_", " ")


def quality(rows: Sequence[Row], of_figure: Callable[[Figure, int], str]) -> list[dict[str, str]]:
    """The table of how good they are: a mapping of column to cell for each row."""
    return [
        {
            "model": row.model,
            **{heading(name): of_figure(figure, DIGITS.get(name, 4)) for name, figure in row.figures.items()},
            "p": "best" if row.p_value is None else f"{row.p_value:.4f}",
        }
        for row in rows
    ]


def cost(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The table of what the lists, or texts, are like and what they cost."""
    speed = "users/s" if "coverage" in rows[0].others else "texts/s"
    return [
        {
            "model": row.model,
            **{heading(name): OTHERS[name].format(value) for name, value in row.others.items()},
            "interests": UNKNOWN if row.interests is None else f"{row.interests:.1f}/{row.num_interests}",
            "network": compact(row.dense_parameters),
            "tables": compact(row.table_parameters),
            "trained": UNKNOWN if row.train_seconds is None else duration(row.train_seconds),
            "steps": UNKNOWN if row.steps is None else f"{row.steps:,.0f}",
            speed: f"{row.users_per_second:,.0f}",
        }
        for row in rows
    ]


def in_lines(figure: Figure, digits: int) -> str:
    """For a terminal: mean and interval, and below, where there is one, the deviation."""
    low, high = (f"{bound:.{digits - 1}f}".removeprefix("0") for bound in (figure.low, figure.high))
    deviation = "" if figure.std is None else f"\n±{figure.std:.{digits}f}"
    return f"{figure.mean:.{digits}f} {low}-{high}{deviation}"


def in_one_line(figure: Figure, digits: int) -> str:
    deviation = "" if figure.std is None else f" ± {figure.std:.{digits}f}"
    return f"{figure.mean:.{digits}f}{deviation} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"


def compact(number: int | None) -> str:
    """Three digits: 734, 12.3k, 1.23M."""
    if number is None:
        return UNKNOWN
    value, unit = float(number), ""
    for larger in ("k", "M", "G", "T"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    if not unit:
        return str(number)
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}{unit}"


def markdown(table: Sequence[dict[str, str]]) -> str:
    """A table in Markdown, numbers to the right."""
    columns = list(table[0])
    lines = [columns, ["---" if column == "model" else "---:" for column in columns]]
    lines += [[cell.replace("|", "\\|") for cell in row.values()] for row in table]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
