"""A comparison in words: two tables of short cells, for terminals, notebooks and Markdown."""

from collections.abc import Callable, Sequence

from eupmim_dist.comparison.rows import Figure, Row
from eupmim_dist.telemetry.progress import duration

UNKNOWN = "-"


def quality(rows: Sequence[Row], of_figure: Callable[[Figure], str]) -> list[dict[str, str]]:
    """The table of how good the lists are: a mapping of column to cell for each row."""
    return [
        {
            "model": row.model,
            "recall": of_figure(row.recall),
            "ndcg": of_figure(row.ndcg),
            "hit rate": of_figure(row.hit_rate),
            "p": "best" if row.p_value is None else f"{row.p_value:.4f}",
        }
        for row in rows
    ]


def cost(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The table of what the lists are like and what they cost."""
    varied = any(row.diversity is not None for row in rows)
    return [
        {
            "model": row.model,
            "coverage": f"{100 * row.coverage:.1f}%",
            **({"diversity": UNKNOWN if row.diversity is None else f"{row.diversity:.3f}"} if varied else {}),
            "interests": UNKNOWN if row.interests is None else f"{row.interests:.1f}/{row.num_interests}",
            "network": compact(row.dense_parameters),
            "tables": compact(row.table_parameters),
            "trained": UNKNOWN if row.train_seconds is None else duration(row.train_seconds),
            "steps": UNKNOWN if row.steps is None else f"{row.steps:,.0f}",
            "users/s": f"{row.users_per_second:,.0f}",
        }
        for row in rows
    ]


def in_lines(figure: Figure) -> str:
    """For a terminal: mean and interval, and below, where there is one, the deviation."""
    low, high = (f"{bound:.3f}".removeprefix("0") for bound in (figure.low, figure.high))
    deviation = "" if figure.std is None else f"\n±{figure.std:.4f}"
    return f"{figure.mean:.4f} {low}-{high}{deviation}"


def in_one_line(figure: Figure) -> str:
    deviation = "" if figure.std is None else f" ± {figure.std:.4f}"
    return f"{figure.mean:.4f}{deviation} ({figure.low:.4f} to {figure.high:.4f})"


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
