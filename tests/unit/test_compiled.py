"""`train.compile`: what a GPU would record, traced on the CPU; and what is said where there is no GPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.assemble import assemble_run
from eupmim_dist.config.load import parse_config
from eupmim_dist.config.schema import TrainConfig
from eupmim_dist.data.batch import Batch, UserBatch
from eupmim_dist.data.prompts.batch import PromptBatch
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.models.layers import causal, transformer
from eupmim_dist.models.layers.attention import MASKED, fused_attention
from eupmim_dist.models.layers.dropout import Dropout
from eupmim_dist.models.layers.transformer import ReLUDropout
from eupmim_dist.parallel.world import World, init_world
from eupmim_dist.train import compiled
from eupmim_dist.train import step as step_module
from eupmim_dist.train.compiled import compile_network, told_of_compiling
from eupmim_dist.train.step import prepare_step, train_step
from tests.stores import small_store

GPU: Any = SimpleNamespace(device=torch.device("cuda"))


class Compiled(torch.nn.Module):
    batch_type: type[Batch] = UserBatch

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, Any] = {}

    def compile(self, **how: Any) -> None:
        self.asked = how


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> InteractionStore:
    return small_store(tmp_path_factory.mktemp("compiled") / "store", num_users=60, num_items=50)


def losses(store: InteractionStore, model: dict[str, Any], task: dict[str, Any], *, traced: bool) -> list[torch.Tensor]:
    """Of four steps of two micro-batches; `traced` demands one graph without breaks, as CUDA graphs are made of."""
    values = {
        "model": {"dim": 8, "num_heads": 2, "num_encoder_layers": 1, "num_levels": 1, **model},
        "task": {"history_length": 6, **task},
        "train": {"global_batch_size": 16, "accumulation": 2, "threads": 1},
    }
    run = assemble_run(parse_config(values, "test"), init_world(), store)
    if traced:
        run.model.compile(backend="aot_eager", dynamic=False, fullgraph=True)
    run.dense.module.train()
    found = []
    for step in range(4):
        found.append(torch.stack(list(train_step(run, step, prepare_step(run, step)).shares.values())))
    return found


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches that a GPU takes; a CPU's dropout asks its generator for a number, which no graph has."""

    def padded(qkv: Tensor, mask: Tensor, num_heads: int, dropout: float) -> Tensor:
        return fused_attention(qkv, num_heads, dropout, torch.where(mask > 0, 0.0, MASKED)[:, None, None, :])

    def dropped(self: Dropout, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    monkeypatch.setattr(transformer, "multi_head_attention", padded)
    monkeypatch.setattr(causal, "causal_attention", fused_attention)
    monkeypatch.setattr(Dropout, "forward", dropped)
    monkeypatch.setattr(ReLUDropout, "forward", lambda self, x: dropped(self, F.relu(x)))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("model", "task"),
    [
        ({"name": "eupmim"}, {}),
        ({"name": "eupmim", "extractor": "causal"}, {"name": "every_position"}),
    ],
)
def test_a_step_is_one_graph_and_stays_it(
    store: InteractionStore, model: dict[str, Any], task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    begun: list[TrainConfig] = []
    monkeypatch.setattr(step_module, "begin_step", lambda config, _: begun.append(config))
    plain = losses(store, model, task, traced=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = losses(store, model, task, traced=True)
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=0)
    assert len(begun) == len(plain) + len(found), "once for each step, whatever its micro-batches"


def test_each_way_is_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = Compiled()
    compile_network(network, TrainConfig(), GPU)
    assert network.asked == {}
    compile_network(network, TrainConfig(compile="cuda_graphs"), GPU)
    assert network.asked == {"backend": "cudagraphs", "dynamic": False}
    monkeypatch.setattr(compiled, "lack_of_triton", lambda: None)
    compile_network(network, TrainConfig(compile="inductor"), GPU)
    assert network.asked == {"mode": "reduce-overhead", "dynamic": False}
    monkeypatch.setattr(compiled, "lack_of_triton", lambda: "no C compiler")
    with pytest.raises(UserError, match=r"^train\.compile: inductor cannot be: no C compiler; or use cuda_graphs"):
        compile_network(network, TrainConfig(compile="inductor"), GPU)


def test_a_network_of_many_shapes_is_refused() -> None:
    network: Any = Compiled()
    network.batch_type = PromptBatch
    with pytest.raises(UserError, match=r"^train\.compile: Compiled is given batches of many shapes; use none"):
        compile_network(network, TrainConfig(compile="cuda_graphs"), GPU)


def test_without_a_gpu_the_network_stays_as_it_is() -> None:
    world: World = init_world()
    network: Any = Compiled()
    compile_network(network, TrainConfig(compile="cuda_graphs"), world)
    assert network.asked == {}
    assert told_of_compiling(TrainConfig(), world) is None
    assert "is for GPUs" in (told_of_compiling(TrainConfig(compile="inductor"), world) or "")
    assert "first step" in (told_of_compiling(TrainConfig(compile="cuda_graphs"), GPU) or "")


def test_each_step_of_a_compiled_network_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    compiled.begin_step(TrainConfig(), GPU)
    assert not begun
    compiled.begin_step(TrainConfig(compile="cuda_graphs"), GPU)
    assert begun == [1]
