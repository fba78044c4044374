"""Several models and baselines on one store, trained where they are not yet: `from eupmim_dist import compare`."""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eupmim_dist import assemble
from eupmim_dist.api import variety_of
from eupmim_dist.arguments import StoreLike, cutoffs_of, path_of, several, store_dir
from eupmim_dist.comparison.entries import Models, ToTrain, Trained, Variants, check_comparable, data_of, entries_of
from eupmim_dist.comparison.results import JSON_FILE, MARKDOWN_FILE, Comparison
from eupmim_dist.comparison.rows import Measured, rows_of
from eupmim_dist.comparison.work import (
    Rules,
    Say,
    check_texts_compare,
    of_baseline,
    of_trained,
    of_training,
    setup_of_baselines,
    trainings_of,
)
from eupmim_dist.config.load import Overrides
from eupmim_dist.errors import UserError, short
from eupmim_dist.evaluation.baselines import CUTOFF
from eupmim_dist.evaluation.explanations import check_no_lists, num_explained
from eupmim_dist.evaluation.protocols import EXPLANATION, PROTOCOLS, check_names, check_protocols
from eupmim_dist.evaluation.runner import check_cutoffs
from eupmim_dist.evaluation.scorers.interface import check_baselines
from eupmim_dist.files import check_out, writing
from eupmim_dist.parallel.agreement import agreed, decided_by_main
from eupmim_dist.parallel.world import World, init_world
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.machine import commit, device_name
from eupmim_dist.telemetry.progress import task_progress


def compare(
    models: Models = (),
    *,
    data: StoreLike | None = None,
    baselines: str | Sequence[str] = (),
    split: str = "test",
    protocol: str = "strict",
    top_n: int | None = None,
    seeds: int | Sequence[int] = (),
    overrides: str | Overrides = (),
    variants: Variants | None = None,
    categories: Any = None,
    out: Path | str = "runs/compare",
    cpu: bool = False,
    command: str | None = None,
) -> Comparison:
    """Several models and baselines side by side, under one protocol; collective.

    Configurations are trained one after another in `out`, in a run directory for each and each seed; the same call
    goes on with one that was interrupted, and trains none that is finished. Also writes comparison.json and
    comparison.md to `out`.

    Args:
        models: runs, checkpoints, models (paths, or what `fit` gave), and configurations (YAML files, `Config` or
            mappings); one, a list, or a mapping of names of your own to them.
        data: the store; else the one that the first model names.
        baselines: of `popularity`, `ease`, `cooccurrence`, `association`, `paths`, `history_paths` and `next_id`.
        split: `valid` or `test`.
        protocol: as for `evaluate`.
        top_n: the cut-off N; 10 if not given.
        seeds: train each configuration with each of them, in place of its own. A row then has the means over seeds;
            intervals and tests are over users, each with the mean over seeds.
        overrides: settings that come before those of all configurations, as for `fit`.
        variants: of the one configuration that is given, for an ablation: by a name for each, settings in which it
            differs, such as `{"no graph": {"model.graph": False}}`. They are trained beside it.
        categories: a data frame or file of the items' categories, as for `evaluate`; adds the diversity of lists.
        out: where trainings and results are written.
        cpu: use the CPU even where there are GPUs.
        command: what comparison.md names as the command it was made by.

    Ctrl-C and SIGTERM end a training as they end `fit`; the comparison then has `finished` False and no rows.

    Raises UserError, on all ranks, before anything is trained: for models of different stores or rules, two of one
    name, a configuration that cannot be trained, and whatever `fit`, `load` and `evaluate` refuse.
    """
    world = init_world(cpu)
    with agreed(world):
        chosen, [num], place = several(baselines), cutoffs_of(CUTOFF if top_n is None else top_n), path_of("out", out)
        check_names([protocol], [EXPLANATION])
        of_lists = protocol != EXPLANATION
        if not of_lists:
            check_no_lists({"baseline": chosen, "top-n": top_n, "categories": categories is not None})
        _check(chosen, split, place)
        wanted_seeds = _seeds(seeds)
    with agreed(world):
        entries = decided_by_main(world, lambda: entries_of(models, overrides, variants or {}, chosen))
        if not entries and not (chosen and data is not None):
            raise UserError("compare: give runs or configurations, or --baseline NAME with --data DIR")
        if wanted_seeds and not any(isinstance(entry, ToTrain) for entry in entries):
            raise UserError("--seeds: are for configurations, and only trained models are given; leave them out")
        store = assemble.open_store(
            decided_by_main(world, lambda: data_of(entries, None if data is None else store_dir(data))), world
        )
        check_comparable(entries, store)
        if not len(store.users(split)):
            raise UserError(f"{store.path}: split {split} has no users")
        if of_lists:
            check_protocols([protocol], store)
            check_cutoffs([num], store.num_item_rows)
        variety = variety_of(0.0, categories, store, world)
        rules = Rules(world, store, split, protocol, num if of_lists else None, variety, cpu)
        if not of_lists:
            check_texts_compare(entries, rules)
        trainings = trainings_of(entries, wanted_seeds, place, rules)
        if world.is_main:
            with writing(f"--out {place}"):
                place.mkdir(parents=True, exist_ok=True)

    baseline = setup_of_baselines(entries, rules)
    of_entries = {entry.name: [partial(of_trained, entry, rules)] for entry in entries if isinstance(entry, Trained)}
    of_baselines = {name: [partial(of_baseline, name, baseline, rules)] for name in chosen}
    of_trainings = {
        entry.name: [partial(of_training, training, rules) for training in trainings if training.entry is entry]
        for entry in entries
        if isinstance(entry, ToTrain)
    }
    users = len(store.users(split)) if of_lists else num_explained(store, split)
    # What may fail before long comes first.
    found, failed = _all_measured(of_entries | of_baselines | of_trainings, world)
    if found is None:
        return Comparison([], split, protocol, rules.top_n, users, finished=False)
    if not found:
        raise UserError(f"compare: nothing is left: {'; '.join(f'{name}: {why}' for name, why in failed.items())}")
    with task_progress("intervals and tests over users", is_main=world.is_main):
        rows = rows_of(found)
    made_by = {
        "command": command,
        "store": {"name": store.name, "fingerprint": store.fingerprint[:12]},
        "seeds": wanted_seeds or list(dict.fromkeys(training.seed for training in trainings)),
        "commit": commit(),
        "torch": torch.__version__,
        "machine": device_name(world.device),
        "ranks": world.size,
    }
    included = any(not entry.config.evaluation.exclude_seen for entry in entries)  # of one rule all
    seen_included = included and of_lists and PROTOCOLS[protocol].exclude_history
    comparison = Comparison(rows, split, protocol, rules.top_n, users, made_by, failed, seen_included)
    with agreed(world):
        if world.is_main:
            comparison.write(place)
    return comparison


def _check(baselines: Sequence[str], split: str, out: Path) -> None:
    check_baselines(baselines)
    if repeated := [name for name in baselines if baselines.count(name) > 1]:
        raise UserError(f"--baseline {repeated[0]}: is given twice; give it once")
    if split not in ("valid", "test"):
        raise UserError(f"--split {split}: choose valid or test")
    check_out(out, f"--out {out}")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a directory")
    if others := [path for path in (out.iterdir() if out.exists() else []) if path.is_file() and not _own(path)]:
        raise UserError(f"--out {out}: already holds something else, {min(others).name}; give another directory")


def _own(path: Path) -> bool:
    return path.name in (JSON_FILE, MARKDOWN_FILE) or path.name.startswith(".")


def _seeds(seeds: Any) -> list[int]:
    try:
        found = [operator.index(seed) for seed in several(seeds)]
    except TypeError:
        found = [-1]
    if any(not 0 <= seed < 2**63 for seed in found) or len(set(found)) < len(found):
        raise UserError(f"--seeds {short(seeds)}: give different whole numbers from 0, separated by commas")
    return found


Measure = Callable[[Say], Measured | str | None]
"""Trains where needed and evaluates, and says so; why it failed, or None if it was asked to stop."""


def _all_measured(work: dict[str, list[Measure]], world: World) -> tuple[list[list[Measured]] | None, dict[str, str]]:
    """Those that could be, None if asked to stop; and why the others failed, by name."""
    number, total = 0, sum(map(len, work.values()))
    found: dict[str, list[Measured]] = {}
    failed: dict[str, str] = {}
    for name, of_model in work.items():
        for measure in of_model:
            number += 1

            def say(what: str, place: str = f"[{number}/{total}]") -> None:
                get_logger(world.rank).info(f"{place} {what}")

            one = measure(say)
            if one is None:
                return None, failed
            if isinstance(one, str):  # with another seed it may go well, but a mean would not be of all
                failed[name] = one
                get_logger(world.rank).warning(f"{name}: {one}")
                found.pop(name, None)
                break
            found.setdefault(name, []).append(one)
    return list(found.values()), failed
