"""Lists re-ranked for variety of categories, from the file to the metric."""

from pathlib import Path

import pytest

from eupmim_dist.api import evaluate
from eupmim_dist.errors import UserError
from eupmim_dist.recommending import recommend
from tests.runs import config_of, train_in

NUM_ITEMS = 30


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("categories")
    train_in(config_of(path, train__max_steps=6), path / "run")
    rows = [f"i{item},{'even' if item % 2 == 0 else 'odd'}" for item in range(1, NUM_ITEMS)]  # one has none
    (path / "items.csv").write_text("\n".join(["item,category", *rows]) + "\n")
    return path


def test_diversity_is_measured_and_bought_with_strength(run: Path) -> None:
    plain, *others = (
        evaluate(run / "run", top_n=[5], categories=run / "items.csv", diversity=strength, cpu=True)[0].metrics
        for strength in (0.0, 0.5, 1000.0)
    )
    assert plain.pop("diversity@5") < others[-1]["diversity@5"]
    [without] = evaluate(run / "run", top_n=[5], cpu=True)
    assert without.metrics == plain
    # Two categories, and perhaps the item without one: lists of 3 and 2, of whose ten pairs six differ, or better.
    assert others[-1]["diversity@5"] >= 0.6


def test_recommendations_alternate_where_variety_is_all(run: Path) -> None:
    found = recommend(run / "run", ["u1", "u2"], 6, categories=run / "items.csv", diversity=1000.0)
    for (_user,), items in found.group_by("user"):
        known = [int(item[1:]) % 2 for item in items["item"] if item != f"i{NUM_ITEMS}"]
        assert abs(2 * sum(known) - len(known)) <= 1


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("item,kind\ni1,a\n", {}, "has no column 'category'; there are item, kind"),
        ("raw_id,category\ni1,a\n", {}, "has no column 'item'; there are raw_id, category"),
        ("item,category\nx,a\n", {}, "has the category of none of the items"),
        (None, {}, "cannot be read as a table"),
        ("item,category\ni1,a\n", {"protocols": ["seed"]}, "protocol seed has a list for each interest"),
        ("item,category\ni1,a\n", {"diversity": -1.0}, "diversity -1.0: give a number from 0"),
    ],
)
def test_mistakes(run: Path, tmp_path: Path, text: str | None, options: dict, message: str) -> None:
    file = tmp_path / "categories.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        evaluate(run / "run", top_n=[5], categories=file, cpu=True, **options)


def test_strength_needs_categories(run: Path) -> None:
    with pytest.raises(UserError, match="give the items' categories too"):
        evaluate(run / "run", top_n=[5], diversity=1.0, cpu=True)


def test_items_without_a_category_are_counted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recommend(run / "run", "u1", 3, categories=run / "items.csv", diversity=0.5)
    told = "items.csv: has no category of 1 of 30 items (i30); each is taken for a category of its own\n"
    assert told in capsys.readouterr().err
    (run / "few.csv").write_text("item,category\ni1,a\ni2,\ni99,b\n")
    recommend(run / "run", "u1", 3, categories=run / "few.csv", diversity=0.5)
    assert "few.csv: has no category of 29 of 30 items (i2, i3, i4, ...); each" in capsys.readouterr().err


def test_categories_are_not_recommended_by_without_strength(run: Path) -> None:
    with pytest.raises(UserError, match=r"categories: are for diversity STRENGTH, such as 0\.5; give both or neither"):
        recommend(run / "run", "u1", 3, categories=run / "items.csv")
