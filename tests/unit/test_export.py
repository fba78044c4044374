"""What `export` writes for other programs, and what `import` refuses."""

import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eupmim_dist import convert
from eupmim_dist.assemble import load_trained
from eupmim_dist.checkpoint import pieces
from eupmim_dist.checkpoint.layout import open_checkpoint
from eupmim_dist.checkpoint.save import save_checkpoint
from eupmim_dist.cli.export import export
from eupmim_dist.cli.import_model import import_model
from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.writer import Dataset, write_dataset
from eupmim_dist.errors import UserError
from eupmim_dist.export import exported, vectors
from eupmim_dist.export.model_dir import consolidate
from eupmim_dist.recommending import recommend, recommendations
from tests.runs import WORLD, config_of, start

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_USERS, NUM_ITEMS = 60, 2500
"""More items than the columns that rows are stored in, so that a table has several blocks."""
EMPTY = (0, 17, 59)
"""Users without a history."""
COMIREC = {"model": {"name": "comirec_dr", "dim": 8, "num_interests": 2}}


def write_store(directory: Path) -> InteractionStore:
    """Users of the authors' three attributes, raw ids that are not the ids, items without a title among them."""
    generator = np.random.default_rng(1)
    lengths = generator.integers(5, 30, NUM_USERS)
    lengths[list(EMPTY)] = 0
    dataset = Dataset(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([generator.permutation(NUM_ITEMS)[:length] + 1 for length in lengths]),
        timestamps=None,
        attributes=[Attribute("gender", 2), Attribute("occupation", 4), Attribute("age", 7)],
        attribute_values=np.stack([generator.integers(0, n, NUM_USERS) for n in (2, 4, 7)], axis=1),
        split=np.where(lengths > 0, np.repeat([0, 1, 2], [40, 10, 10]), 255),
        split_rule="by_user",
        raw_users=pl.Series([f"u{1000 - user}" for user in range(NUM_USERS)]),
        raw_items=pl.Series([f"i{9000 - item}" for item in range(1, NUM_ITEMS + 1)]),
        titles=pl.Series([f"Item {item}" if item % 3 else None for item in range(1, NUM_ITEMS + 1)]),
    )
    write_dataset(dataset, directory, name="small", source="test")
    return InteractionStore.open(directory)


def save_in(tmp_path: Path, **changes: Any) -> Path:
    """A run directory with a checkpoint of initial weights."""
    if not (tmp_path / "store").exists():
        write_store(tmp_path / "store")
    run = start(config_of(tmp_path, **changes))
    for parameter in run.model.parameters():  # biases too
        torch.nn.init.normal_(parameter, std=0.5)
    save_checkpoint(run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(params=["run", "model"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory, or the model consolidated of its checkpoint; read in small blocks."""
    run_dir = save_in(tmp_path)
    if request.param == "model":
        consolidate(open_checkpoint(run_dir / "checkpoints" / "step-000000000"), tmp_path / "model")
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(exported, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(vectors, "USERS_PER_BLOCK", 7)
    return tmp_path / request.param


def brute_force(interests: np.ndarray, items: np.ndarray, seen: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and score of the best unseen items: interests [K, D], items [items, D], `seen` ids."""
    scores = (items.astype(np.float64) @ interests.astype(np.float64).T).max(1)
    scores[seen - 1] = -np.inf
    best = np.argsort(-scores, kind="stable")[:num]
    return best, scores[best]


def test_vectors_rank_as_recommend_does(source: Path, tmp_path: Path) -> None:
    export(source, out=tmp_path / "out")
    trained = load_trained(source, WORLD)
    items, users = np.load(tmp_path / "out" / "items.npy"), np.load(tmp_path / "out" / "users.npy")
    assert items.dtype == users.dtype == np.float32
    assert (items.shape, users.shape) == ((NUM_ITEMS, 8), (NUM_USERS - len(EMPTY), 3, 8))
    rows = trained.tables.lookup({"item": ("item", torch.arange(1, NUM_ITEMS + 1))}).rows[0]["item"]
    assert torch.equal(torch.from_numpy(items), rows.detach())

    item_map = pl.read_parquet(tmp_path / "out" / "items.parquet")
    user_map = pl.read_parquet(tmp_path / "out" / "users.parquet")
    assert item_map.columns == ["row", "item", "title"]
    assert item_map["row"].to_list() == list(range(NUM_ITEMS))
    of_store = pl.read_parquet(tmp_path / "store" / "items.parquet")
    assert item_map.drop("row").equals(of_store.select(pl.col("raw_id").alias("item"), "title"))
    with_history = [user for user in range(NUM_USERS) if user not in EMPTY]
    assert user_map.rows() == [(row, f"u{1000 - user}") for row, user in enumerate(with_history)]
    assert user_map.columns == ["row", "user"]

    trained.config.evaluation.batch_size = 7
    found = recommendations(trained, user_map["user"].to_list(), 10)
    for row, (user, recommended) in enumerate(zip(with_history, found, strict=True)):
        history = np.asarray(trained.store.items[trained.store.offsets[user] : trained.store.offsets[user + 1]])
        best, scores = brute_force(users[row], items, history, 10)
        assert item_map["item"].gather(best).to_list() == [item.raw_id for item in recommended.items]
        assert [f"i{9000 - item}" for item in history[:-4:-1]] == [item.raw_id for item in recommended.recent]
        np.testing.assert_allclose(scores, [item.score for item in recommended.items], rtol=2e-6, atol=1e-7)


def test_parquet_holds_the_same_vectors(source: Path, tmp_path: Path) -> None:
    export(source, out=tmp_path / "npy")
    export(source, out=tmp_path / "parquet", format_name="parquet", what=["users,items"])
    assert sorted(path.name for path in (tmp_path / "parquet").iterdir()) == ["items.parquet", "users.parquet"]
    for kind, repeated in (("items", 1), ("users", 3)):
        frame = pl.read_parquet(tmp_path / "parquet" / f"{kind}.parquet")
        ids = pl.read_parquet(tmp_path / "npy" / f"{kind}.parquet")
        assert frame.schema["vector"] == pl.Array(pl.Float32, 8)
        assert np.array_equal(frame["vector"].to_numpy(), np.load(tmp_path / "npy" / f"{kind}.npy").reshape(-1, 8))
        name = kind.removesuffix("s")
        assert frame[name].to_list() == [value for value in ids[name] for _ in range(repeated)]
    assert pl.read_parquet(tmp_path / "parquet" / "items.parquet").columns == ["item", "vector"]
    assert frame["interest"].to_list() == [1, 2, 3] * len(ids)


def test_a_faiss_index_finds_rows_of_its_table(source: Path, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")

    export(source, out=tmp_path / "out", format_name="faiss")
    export(source, out=tmp_path / "npy", what=["items"])
    assert not (tmp_path / "npy" / "users.npy").exists()
    index = faiss.read_index(str(tmp_path / "out" / "items.faiss"))
    queries = np.load(tmp_path / "out" / "users.npy").reshape(-1, 8)
    scores, rows = index.search(queries, 5)
    expected = queries.astype(np.float64) @ np.load(tmp_path / "npy" / "items.npy").astype(np.float64).T
    order = np.argsort(-expected, axis=1, kind="stable")[:, :5]
    assert np.array_equal(rows, order)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("format_name", ["npy", "faiss"])
def test_the_pages_scripts_find_what_is_recommended(
    format_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if format_name == "faiss":
        pytest.importorskip("faiss")
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    [script] = [
        code
        for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if ("import faiss" in code) == (format_name == "faiss") and "vectors/items" in code
    ]
    assert script.count("\n") <= 13
    export(save_in(tmp_path), out=tmp_path / "vectors", format_name=format_name)
    monkeypatch.chdir(tmp_path)
    for user in ("u999", "u982", "u942"):  # the first, one after another without a history, the last
        scope: dict[str, Any] = {}
        exec(script.replace('"42"', repr(user)), scope)
        expected = recommend(tmp_path / "run", user, 10, exclude_seen=False)
        assert scope["found"]["item"].to_list() == expected["item"].to_list()
        np.testing.assert_allclose(scope["found"]["score"], expected["score"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["run", "model"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__num_interests": 1, "model__num_levels": 2, "task__history_length": 7},
        COMIREC,
        {"model": {**COMIREC["model"], "projection": False}},
    ],
    ids=["eupmim", "settings", "comirec", "no projection"],
)
def test_import_reads_back_what_export_wrote(
    kind: str, changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = save_in(tmp_path, **changes)
    consolidate(open_checkpoint(run_dir / "checkpoints" / "step-000000000"), tmp_path / "model")
    capsys.readouterr()
    export(tmp_path / kind, out=tmp_path / "authors", format_name="authors")
    told = shlex.split(capsys.readouterr().out.partition("`")[2].partition("`")[0])
    assert told[:3] == ["eupmim-dist", "import", str(tmp_path / "authors" / "model.pt")]
    settings = [value for option, value in pairwise(told) if option == "--set"]
    import_model(Path(told[2]), data=tmp_path / "store", out=tmp_path / "again", set_=settings)

    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    first, second = (load_trained(tmp_path / name, WORLD) for name in (kind, "again"))
    assert first.config.model == second.config.model
    users = ["u999", "u950"]
    assert list(recommendations(first, users, 5)) == list(recommendations(second, users, 5))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model__graph": False}, "model.graph is false and the authors' model always has true"),
        ({"model__orthogonal": False}, "model.orthogonal is false"),
        ({"model__extractor": "linear"}, "model.extractor is linear and the authors' model always has transformer"),
        (
            {"model__profile_attention": "full"},
            "model.profile_attention is full and the authors' model always has seed",
        ),
        ({"model__profile_attention": "none", "model__profile": False}, "model.profile_attention is none"),
    ],
)
def test_what_the_authors_format_cannot_say_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    run_dir = save_in(tmp_path, **changes)
    with pytest.raises(UserError, match=reason):
        export(run_dir, out=tmp_path / "out", format_name="authors")
    assert not (tmp_path / "out").exists()


def test_other_attributes_than_the_authors_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "check_hashes", lambda *_: pytest.fail("hashes are compared first"))
    run = start(config_of(tmp_path))  # on the store of age and gender
    save_checkpoint(run, tmp_path / "run")
    with pytest.raises(
        UserError,
        match="store: has the attributes age, gender; the released model has age, gender, occupation, so format",
    ):
        export(tmp_path / "run", out=tmp_path / "out", format_name="authors")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"format_name": "csv"}, "format csv: choose from npy, parquet, faiss, authors"),
        ({"what": ["items,models"]}, "what models: choose from items, users"),
        ({"what": ["items"], "format_name": "authors"}, "what: format authors writes the whole model"),
        ({"data": Path("nowhere")}, "nowhere: no such directory"),
        ({"format_name": "faiss"}, r'faiss is not installed; `pip install "eupmim-dist\[faiss\]"`'),
    ],
)
def test_mistakes_leave_nothing(
    options: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = save_in(tmp_path)
    monkeypatch.setitem(sys.modules, "faiss", None)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=reason):
        export(run_dir, out=tmp_path / "new" / "out", **options)
    assert set(tmp_path.rglob("*")) == before


def test_an_out_that_holds_something_is_kept(tmp_path: Path) -> None:
    run_dir = save_in(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("all of it")
    with pytest.raises(UserError, match="out: already exists; give another out"):
        export(run_dir, out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_damaged_checkpoint_and_a_failure_meanwhile_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = save_in(tmp_path)

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(exported, "_float32", full)  # raised in polars' thread
        with pytest.raises(UserError, match="out: cannot be written: No space left on device"):
            export(run_dir, out=tmp_path / "out", what=["items"])
    [file] = run_dir.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for what in ("items", "users"):
        with pytest.raises(UserError, match="damaged"):
            export(run_dir, out=tmp_path / "out", what=[what])
    assert {path.name for path in tmp_path.iterdir()} == {"store", "run"}


def harmed(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[5] = value
    return tensor


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda t: harmed(t, float("nan")), "holds NaN or infinite values"),
        (lambda t: harmed(t, float("-inf")), "holds NaN or infinite values"),
        (lambda t: harmed(t.double(), 1e300), "holds NaN or infinite values"),
        (lambda t: t.long(), "is int64; only plain tensors of floats are imported"),
        (lambda t: t.bool(), "is bool; only"),
        (lambda t: t.to(torch.complex64), "is complex64; only"),
        (lambda t: t.to_sparse(), "only plain tensors of floats"),
        (lambda t: t.to("meta"), "only plain tensors of floats"),
    ],
)
@pytest.mark.parametrize("name", ["mid_embeddings_var.weight", "mid_embeddings_bias.weight", "fc_layers.0.weight"])
def test_import_refuses_what_is_no_weight(name: str, harm: Any, reason: str, tmp_path: Path) -> None:
    export(save_in(tmp_path), out=tmp_path / "authors", format_name="authors")
    tensors = torch.load(tmp_path / "authors" / "model.pt", weights_only=True)
    torch.save({**tensors, name: harm(tensors[name])}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=rf"bad\.pt: {name} {reason}|bad\.pt: {name} is .*{reason}"):
        import_model(tmp_path / "bad.pt", data=tmp_path / "store", out=tmp_path / "out", set_=["model.num_heads=2"])
    assert {path.name for path in tmp_path.iterdir()} == {"store", "run", "authors", "bad.pt"}


def test_import_takes_halves_doubles_and_tensors_of_one_memory(tmp_path: Path) -> None:
    export(save_in(tmp_path), out=tmp_path / "authors", format_name="authors")
    tensors = torch.load(tmp_path / "authors" / "model.pt", weights_only=True)
    item = tensors["mid_embeddings_var.weight"]
    weight = tensors["_user_profile_interest_attention.fc_layers.2.weight"]
    both = torch.cat([weight.flatten(), weight.flatten()])
    changed = {
        "mid_embeddings_var.weight": item.double(),
        "user_embeddings_var.weight": tensors["user_embeddings_var.weight"].bfloat16(),
        "multi_interest_network.W_q.weight": tensors["multi_interest_network.W_q.weight"].T.contiguous().T,
        "_user_profile_interest_attention.fc_layers.2.weight": both[: weight.numel()].view_as(weight),
        "multi_interest_network.W_h.bias": both[-8:],
    }
    torch.save({**tensors, **changed}, tmp_path / "mixed.pt")
    import_model(tmp_path / "mixed.pt", data=tmp_path / "store", out=tmp_path / "out", set_=["model.num_heads=2"])
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert torch.equal(found["table.item"], item)
    assert torch.equal(found["table.user"], tensors["user_embeddings_var.weight"].bfloat16().float())
    assert torch.equal(found["dense.extractor.query.weight"], tensors["multi_interest_network.W_q.weight"])
    for name in ("items", "users"):
        taken, of_store = (tmp_path / place / f"{name}.parquet" for place in ("out", "store"))
        assert taken.read_bytes() == of_store.read_bytes()
