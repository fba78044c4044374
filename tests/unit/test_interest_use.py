"""What a run says of its interests while it trains."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eupmim_dist.train.state import Run
from tests.runs import config_of, train_in

pytestmark = pytest.mark.usefixtures("one_thread")


def logged(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "valid/strict/recall@5" in line]


def test_each_evaluation_of_several_interests_tells_their_use(tmp_path: Path) -> None:
    train_in(config_of(tmp_path), tmp_path / "run")
    for line in (lines := logged(tmp_path / "run")):
        assert sum(line[f"interests/share_{k}"] for k in (1, 2, 3)) == pytest.approx(1.0)
        assert all(line[f"interests/norm_{k}"] > 0 for k in (1, 2, 3))
        assert -1 <= line["interests/cosine"] <= 1
    assert len(lines) == 3
    train_in(config_of(tmp_path, model__num_interests=1), tmp_path / "one")
    assert not any(key.startswith("interests/") for line in logged(tmp_path / "one") for key in line)


def test_interests_that_are_one_are_warned_of_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def silence(run: Run) -> None:
        """All but the first interest are a hundredth of what they were."""
        encode = run.model.encode
        factor = torch.tensor([1.0, 0.01, 0.01])[:, None]

        def encoded(*arguments: Any) -> Any:
            found = encode(*arguments)
            return found._replace(queries=found.queries * factor)

        run.model.encode = encoded  # type: ignore[method-assign]

    train_in(config_of(tmp_path), tmp_path / "run", silence)
    told = " ".join(capfd.readouterr().err.split())
    assert told.count("one does the work of all") == 1
    assert "step 8: eupmim: its 3 interests fill 100.0, 0.0, 0.0 %" in told  # and not step 4, the first evaluation
    assert "work of all; model.extractor=causal and model.orthogonal=false may help: see docs/results.md" in told


def test_only_settings_that_a_model_has_otherwise_are_said_to_help(tmp_path: Path) -> None:
    def named(**changes: Any) -> list[str]:
        return config_of(tmp_path, **changes).model.against_collapse()

    assert named(model__extractor="causal") == ["model.orthogonal=false"]
    assert not named(model__extractor="causal", model__orthogonal=False)
    assert not named(model={"name": "comirec_sa"})
