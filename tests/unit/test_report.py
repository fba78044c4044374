"""The page about runs: what it holds against what it is of, what it survives, and how a browser takes it."""

import html
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from filelock import FileLock

from eupmim_dist import UserError, fit, load, recommend, report
from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.writer import Dataset, write_dataset
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.evaluation.statistics import bootstrap_interval
from eupmim_dist.reporting.charts import Series, chart, compact, scale_of, thinned
from eupmim_dist.reporting.curves import groups_of
from eupmim_dist.reporting.examples import chosen_users
from eupmim_dist.reporting.item_map import SIZE, apart, principal_axes
from eupmim_dist.reporting.metrics import Line, Metrics, Spent, bytes_sent, read_metrics, spent
from eupmim_dist.reporting.runs import ReportedRun, runs_of
from tests.runs import command_line
from tests.stores import small_store

pytestmark = pytest.mark.usefixtures("one_thread")

NASTY = '<script>alert(1)</script> & "it\'s"'
SETTINGS: dict[str, Any] = {
    "task": {"history_length": 6},
    "objective": {"num_negatives": 5},
    "train": {"global_batch_size": 8, "learning_rate": 0.01, "log_every": 2, "max_steps": 12, "threads": 1},
    "evaluation": {"every": 4, "metric": "recall@5", "patience": 0, "top_n": [5]},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose titles are not to be trusted, two runs on it, and a page about both."""
    root = tmp_path_factory.mktemp("report")
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 20, 60)
    dataset = Dataset(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([generator.permutation(30)[:length] + 1 for length in lengths]),
        timestamps=None,
        attributes=[Attribute("age", 7)],
        attribute_values=generator.integers(0, 7, (60, 1)),
        split=np.repeat([0, 1, 2], [30, 15, 15]),
        split_rule="by_user",
        raw_users=pl.Series([f"u{i}</h3>" for i in range(60)]),
        raw_items=pl.Series([f"i{i}" for i in range(1, 31)]),
        titles=pl.Series([NASTY, *(f"Item {i}" for i in range(2, 31))]),
    )
    write_dataset(dataset, root / "store", name="shop</p>", source="test")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        more = {"num_interests": 2}
        two = fit({**SETTINGS, "model": {"name": "comirec_dr", "dim": 8, **more}}, "runs/two", data="store")
        more = {"num_layers": 1, "num_heads": 1}
        fit({**SETTINGS, "model": {"name": "sasrec", "dim": 8, **more}}, "runs/one", data="store")
        report([two, "runs/one"], "pages/both.html", users=3)
    return root


@pytest.fixture
def place(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def own_run(place: Path, tmp_path: Path) -> Path:
    """A copy of a run, to be harmed."""
    return Path(shutil.copytree("runs/two", tmp_path / "harmed"))


def page(place: Path) -> str:
    return (place / "pages/both.html").read_text()


def text_of(source: str) -> str:
    """What a reader sees, blanks folded."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(style|script)>.*?</\1>", "", source))).split())


class Tags(HTMLParser):
    """Which elements are open at the end, and the attributes of all that there were."""

    EMPTY = ("meta", "link", "input", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_small_and_asks_nothing_of_others(place: Path) -> None:
    source = page(place)
    tags = Tags()
    tags.feed(source)
    assert not tags.open
    assert len(source) < 400_000
    assert not re.findall(r"https?://|@import|url\(", source)
    links = [value for _, name, value in tags.attributes if name in ("src", "href")]
    assert {value for value in links if not value.startswith("#")} == {"data:,"}
    ids = [value for _, name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value.removeprefix("#") for value in links if value.startswith("#")} <= set(ids)
    labelled = {value for _, name, value in tags.attributes if name in ("for", "aria-labelledby")}
    assert labelled <= set(ids)


def test_what_comes_from_data_is_escaped(place: Path) -> None:
    source = page(place)
    assert source.count("<script>") == 1  # the page's own
    assert "alert(1)" in source
    assert NASTY in text_of(source)
    assert "shop</p>" in text_of(source)
    assert "</h3> had" in text_of(source)


def test_figures_and_intervals_are_those_of_an_evaluation(place: Path) -> None:
    shown = text_of(page(place))
    result = evaluate_model(load("runs/two"), "test", "strict", [10], per_user=True)
    for metric in ("recall", "ndcg", "hit_rate", "precision"):
        mean = result.metrics[f"{metric}@10"]
        low, high = bootstrap_interval(result.per_user.metrics[f"{metric}@10"])
        assert re.search(rf"{mean:.4f} {low:.4f} . {high:.4f}", shown)
    assert "popularity baseline 0." in shown
    for baseline in ("association", "ease"):
        assert re.search(rf"{baseline} baseline, by the last \d+ items? 0\.", shown)


def test_users_get_what_the_model_recommends_them(place: Path) -> None:
    """Each interest's list against `recommend` of the history before the cut; hits against what came after it."""
    model = load("runs/two")
    store, source = model.store, page(place)
    users = chosen_users(store, "test", 3)
    articles = re.findall(r"(?s)<article.*?</article>", source)
    assert len(articles) == 3
    for user, article in zip(users.tolist(), articles, strict=True):
        had, end = store.evaluation_window(np.array([user]), "test")
        items = store.items[store.offsets[user] : store.offsets[user + 1]]
        before, after = items[: int(had[0])], items[int(had[0]) : int(end[0])]
        raw = f"u{user}</h3>"
        history = [[f"i{item}" for item in before]]
        best = recommend(model, raw, 10, histories=history)
        by_interest = recommend(model, raw, 5, histories=history, per_interest=True)
        lists = re.findall(r"(?s)<ol>(.*?)</ol>", article)
        assert len(lists) == 1 + 1 + 2  # of `two`, of `one`, and of each interest of `two`
        for shown, frame in zip([lists[0], *lists[2:]], [best, *by_interest.partition_by("interest")], strict=True):
            entries = re.findall(r"(?s)<li( class=\"hit\")?>.*?<bdi>(.*?)</bdi>(.*?)</li>", shown)
            assert [html.unescape(label) for _, label, _ in entries] == frame["title"].to_list()
            taken = [f"i{item}" for item in after]
            assert [bool(hit) for hit, _, _ in entries] == [item in taken for item in frame["item"]]
        chips = re.findall(r"aria-label=\"interest (\d)\"", lists[0])
        assert [int(chip) for chip in chips] == best["interest"].to_list()
        assert f"had {len(before)} items, took {len(after)} more" in text_of(article)


def test_example_users_spread_over_lengths_and_stay_the_same(place: Path) -> None:
    store = load("runs/two").store
    few = chosen_users(store, "test", 5)
    assert few.tolist() == chosen_users(store, "test", 5).tolist()
    lengths = store.lengths(few)
    assert lengths.tolist() == sorted(lengths)
    assert len(set(lengths.tolist())) > 2
    assert sorted(chosen_users(store, "test", 40)) == store.users("test").tolist()
    assert not len(chosen_users(store, "test", 0))


def test_curves_hold_what_was_logged(place: Path) -> None:
    source = page(place)
    drawn = {
        html.unescape(title): json.loads(html.unescape(lines))
        for title, lines in re.findall(r"(?s)<figcaption><bdi>([^<]*)</bdi>.*?data-lines=\"([^\"]*)\"", source)
    }
    logged = [json.loads(line) for line in Path("runs/two/metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], f"{line['loss']:.5g}") for line in logged if "loss" in line]
    assert [(step, value) for step, _, _, value in drawn["Loss"][0][2]] == losses
    assert [line[0] for line in drawn["Loss"]] == ["two", "one"]
    assert {"Learning rate", "Samples per second", "Gradient norm", "Share of the lists, two"} <= drawn.keys()
    assert "Share of the lists, one" not in drawn  # it has one interest
    recall = [line["valid/strict/recall@5"] for line in logged if "valid/strict/recall@5" in line]
    assert [value for *_, value in drawn["recall@5, valid, strict"][0][2]] == [f"{value:.5g}" for value in recall]
    assert all(
        0 <= x <= 360 and 0 <= y <= 200 for lines in drawn.values() for *_, points in lines for _, x, y, _ in points
    )


def test_losses_of_different_objectives_are_in_charts_of_their_own(place: Path) -> None:
    def titles(*runs: ReportedRun) -> tuple[str, list[tuple[str, list[str]]]]:
        losses = groups_of(runs)[0]
        return losses.about, [(one.title, [line.name for line in one.lines]) for one in losses.charts]

    two, one = runs_of(["runs/two", "runs/one"])
    objective = one.config.objective.model_copy(update={"num_negatives": 7})
    other = replace(one, config=one.config.model_copy(update={"objective": objective}))
    about, charts = titles(two, one)
    assert "do not compare" not in about
    assert charts[0] == ("Loss", ["two", "one"])
    about, charts = titles(two, other, two)
    assert "differ in objective" in about
    assert charts[:2] == [("Loss, two, two", ["two", "two"]), ("Loss, one", ["one"])]


def test_settings_that_differ_are_told(place: Path) -> None:
    shown = text_of(page(place))
    assert "model.name comirec_dr sasrec" in shown
    assert "model.num_interests 2 1" in shown
    assert not re.search(r"model\.dim \d+ \d+", shown)
    assert "learning_rate: 0.01" in shown  # of the whole configuration


def test_a_run_under_way_or_damaged_is_shown_as_far_as_it_goes(own_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    with (own_run / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 14, "time": 9e9, "loss": NaN, "x": 1e999, "learning_rate": 0.5}\n')
        stream.write(b'nothing\n[1]\n{"step": "a"}\n{"step": 13, "lo')
    config = own_run / "config.yaml"
    config.write_text(config.read_text().replace("max_steps: 12", "max_steps: 40"))
    written = report(own_run, out, baselines="popularity", users=1)
    shown = text_of(out.read_text())
    assert "4 lines of its metrics.jsonl could not be read" in shown
    assert written.notes == ["harmed: 4 lines of its metrics.jsonl could not be read, and left out"]
    assert "not finished, step 14 of 40" in shown
    with FileLock(own_run / ".lock"):
        shutil.rmtree(own_run / "checkpoints")
        (own_run / "metrics.jsonl").unlink()
        report(own_run, out, baselines=())
        assert "still training, step 0 of 40" in text_of(out.read_text())
    report(own_run, out)
    shown = text_of(out.read_text())
    assert "has no checkpoint yet" in shown
    assert "there is no metrics.jsonl" in shown
    assert "popularity baseline 0." in shown


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("runs/nope", "runs/nope: no such directory"),
        ("store", "store: is no run directory"),
        ("runs/two runs/two", "runs/two: is given twice"),
        ("runs/two --out page.txt", "--out page.txt: give a name that ends in .html"),
        ("runs/two --users 99", "--users 99: give a whole number from 0 to 40"),
        ("runs/two --baseline nope", "--baseline nope: choose from"),
        ("runs/two --split train", "--split train: choose valid or test"),
        ("runs/two --data other", "runs/two: was trained on another store, shop</p> ("),
    ],
)
def test_mistakes_write_nothing(place: Path, capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    if not Path("other").exists():
        small_store(place / "other", seed=9)
    assert command_line(f"report {line}") == 2
    assert f"error: {said}" in capsys.readouterr().err
    assert not Path("report.html").exists()


def test_runs_of_two_stores_are_refused(place: Path, tmp_path: Path) -> None:
    small_store(tmp_path / "elsewhere", seed=3)
    settings = {**SETTINGS, "train": {**SETTINGS["train"], "max_steps": 2}}
    fit({**settings, "model": {"name": "youtube_dnn", "dim": 4}}, tmp_path / "run", data=tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"another store, small \(.*than store of runs/two, shop"):
        report(["runs/two", tmp_path / "run"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_time_is_shared_between_what_it_went_to() -> None:
    def trained(step: int, time: float) -> Line:
        return Line(step, time, {"seconds/training": 10.0})

    lines = [trained(10, 110.0), Line(10, 113.0, {"valid": 1, "seconds/evaluation": 2.5})]
    lines += [Line(10, 114.0, {"seconds/checkpoint": 0.5, "seconds/training": 0.25})]
    lines += [trained(20, 125.0), trained(30, 200.0)]
    assert spent(Metrics(lines)) == Spent(training=30.25, evaluation=2.5, checkpoints=0.5, rest=66.75)
    assert spent(Metrics(lines)).total == 100.0
    assert spent(Metrics([Line(10, 1.0, {"loss": 1.0})])) is None
    assert spent(Metrics()) is None


def test_bytes_are_means_of_the_lines() -> None:
    lines = [Line(step, 1.0, {"bytes_sent/rows": 10.0 * step, "bytes_sent/dense": 7.0}) for step in (1, 2)]
    assert bytes_sent(Metrics(lines)) == {"rows": 15.0, "dense": 7.0}
    assert bytes_sent(Metrics([Line(1, 1.0, {"loss": 1.0})])) is None


def test_scales_hold_their_values_at_round_ticks() -> None:
    for values in ([0.0], [3.0, 3.0], [-1.0, 5.0], [1e-9, 2e-9], [1e12, 3e12], [0.1, 0.30000001]):
        scale = scale_of(values, 0.0, 100.0)
        assert all(0 <= scale.at(value) <= 100 for value in values)
        places = [tick.at for tick in scale.ticks()]
        assert places == sorted(places)
        assert all(-0.1 <= at <= 100.1 for at in places)
        assert 2 <= len(places) <= 12
    assert [tick.label for tick in scale_of([1.0, 1e6], 0, 100, log=True).ticks()] == ["1", "100", "10k", "1M"]
    assert [compact(value) for value in (0.05, 12000.0, 3e-5, -2.5e6, 0.0)] == ["0.05", "12k", "3e-5", "-2.5M", "0"]
    points = [(step, float(step)) for step in range(1000)]
    assert thinned(points, 100)[:2] == [(9, 4.5), (19, 14.5)]
    assert len(thinned(points, 300)) <= 300
    assert chart("nothing", [Series("a", 0, [])]) is None


def test_the_map_shows_the_directions_of_most_variance() -> None:
    generator = np.random.default_rng(0)
    spread = generator.normal(size=(200, 5)) * [0.1, 3.0, 0.1, 1.0, 0.1]
    axes, explained = principal_axes(spread - spread.mean(0))
    assert np.abs(axes[:, 0]).argmax() == 1
    assert np.abs(axes[:, 1]).argmax() == 3
    assert explained > 0.99
    np.testing.assert_allclose(axes.T @ axes, np.eye(2), atol=1e-12)
    narrow, _ = principal_axes(generator.normal(size=(9, 1)))
    assert narrow.shape == (1, 2)
    moved = apart([(10.0, 10.0), (12.0, 11.0), (SIZE - 5.0, 10.0), (SIZE - 5.0, 10.0)])
    assert all(abs(a[0] - b[0]) >= 20 or abs(a[1] - b[1]) >= 20 for i, a in enumerate(moved) for b in moved[:i])
    assert all(0 < x < SIZE for x, _ in moved)


def test_metrics_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(
        b'{"step": 2, "time": 5.0, "loss": 1, "note": "x", "on": true}\n\xff\xfe\n\n{"step": 1, "loss": 3}\n'
    )
    found = read_metrics(file)
    assert found.points("loss") == [(1, 3.0), (2, 1.0)]
    assert (found.names(), found.skipped, found.times) == (["loss"], 1, [5.0])
    assert read_metrics(tmp_path / "none").missing


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
]
LOOK = """<!doctype html><body><iframe id="page" src="both.html" style="width:380px;height:800px;border:0"></iframe>
<script>
document.getElementById("page").addEventListener("load", (event) => {
  const inside = event.target.contentDocument, root = inside.documentElement;
  const chart = inside.querySelector("svg[data-lines]");
  chart.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"}));
  const shown = (n) => getComputedStyle(inside.querySelector(`.on-map-${n}`)).display;
  const before = [shown(1), shown(2)];
  inside.getElementById("map-user-2").click();
  document.body.dataset.found = JSON.stringify({
    width: [root.scrollWidth, root.clientWidth], tip: inside.querySelector(".tip").textContent,
    maps: [before, [shown(1), shown(2)]],
  });
});
</script>"""


@contextmanager
def served(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of files on this machine, and the paths that it is asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(directory)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (apt-get install chromium)")
def test_a_browser_shows_it_narrow_without_errors_or_requests(place: Path, tmp_path: Path) -> None:
    assert BROWSER is not None
    site = tmp_path / "site"
    site.mkdir()
    shutil.copy("pages/both.html", site / "both.html")
    (site / "look.html").write_text(LOOK)
    with served(site) as (address, asked):
        done = subprocess.run(
            [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"{address}/look.html"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "HOME": str(tmp_path)},
        )
    told = re.search(r'data-found="([^"]*)"', done.stdout)
    assert told is not None, done.stderr
    found = json.loads(html.unescape(told[1]))
    assert found["width"][0] <= found["width"][1] <= 380
    assert re.fullmatch(r"step 10● two [\d.]+● one [\d.]+", found["tip"])
    assert found["maps"] == [["inline", "none"], ["none", "inline"]]
    assert "CONSOLE" not in done.stderr
    assert [path for path in asked if path != "/favicon.ico"] == ["/look.html", "/both.html"]
