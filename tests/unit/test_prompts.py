"""Prompts: their text, tokens and words, and how they are sampled."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eupmim_dist.assemble import make_task, open_store
from eupmim_dist.config.load import parse_config
from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.prompts.batch import PromptBatch
from eupmim_dist.data.prompts.prompt import FIRST_ITEM_WORD, USER_WORD, fill, tokenise
from eupmim_dist.data.prompts.templates import KINDS, SHORT, TEMPLATES
from eupmim_dist.data.prompts.vocabulary import PLAIN, Vocabulary, load_vocabulary, where
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.parallel.world import World
from eupmim_dist.tasks.prompts.task import Prompts
from tests.oracles.prompts_plain import word_ids
from tests.prompts import SETTINGS, unigram_tokenizer, with_explanations
from tests.stores import small_store

BATCH = 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(unigram_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> InteractionStore:
    return small_store(tmp_path_factory.mktemp("data") / "store", split_rule="leave_one_out", longest=25)


def task_of(store: InteractionStore, rank: int = 0, world_size: int = 1, **changes: Any) -> Prompts:
    values = SETTINGS | {"data": {"dir": str(store.path)}, "task": SETTINGS["task"] | changes}
    config = parse_config(values | {"train": {"global_batch_size": BATCH}}, "test")
    world = World(rank, world_size, rank, world_size, torch.device("cpu"))
    task = make_task(config, world, store)
    assert isinstance(task, Prompts)
    return task


def test_there_are_as_many_wordings_as_the_authors_have() -> None:
    assert [len(TEMPLATES[kind]) for kind in KINDS] == [9, 8, 5]
    for wordings in TEMPLATES.values():
        assert len(set(wordings)) == len(wordings)
        assert all(w.count("{user}") == w.count("{items}") == 1 for w in wordings)


@pytest.mark.parametrize("name", ["pieces", PLAIN])
def test_a_name_is_one_word_to_its_last_digit_in_all_wordings(tokenizer: str, name: str) -> None:
    vocabulary = load_vocabulary(tokenizer if name == "pieces" else PLAIN)
    backend = vocabulary.tokenizer.backend_tokenizer
    generator = np.random.default_rng(0)
    punctuated = [
        "{user}, {items}.",
        "{user}.{items};",
        "({items}) {user}?",
        "{items} {user}",
        "a{user}"[1:] + "{items}",
    ]
    for template in [SHORT, *punctuated, *(w for of_kind in TEMPLATES.values() for w in of_kind)]:
        prompts, expected, tokens = [], [], []
        for _ in range(20):
            user, items = (
                int(generator.integers(0, 30_000)),
                generator.permutation(20_000)[: generator.integers(1, 9)] + 1,
            )
            prompt = fill(template, user, items.tolist())
            numbers = {("user", user + 1): USER_WORD}
            numbers |= {("item", int(item)): FIRST_ITEM_WORD + k for k, item in enumerate(items)}
            prompts.append(prompt)
            strings = vocabulary.tokenizer.convert_ids_to_tokens(backend.encode(prompt.text).ids)
            expected.append(word_ids(strings, numbers))
            tokens.append(backend.encode(prompt.text).ids)
        found, words = tokenise(vocabulary, prompts, 512, lambda _: ("", ""))
        for row, (of_tokens, of_words) in enumerate(zip(tokens, expected, strict=True)):
            rest = [0] * (found.shape[1] - len(of_tokens))
            assert words[row].tolist() == of_words + rest, prompts[row].text
            assert found[row].tolist() == of_tokens + [NO_ROW] * len(rest)


def test_the_tokenizer_of_the_test_cuts_names_as_a_real_one_does(tokenizer: str) -> None:
    vocabulary = load_vocabulary(tokenizer)
    tokens = vocabulary.tokenizer.convert_ids_to_tokens(vocabulary.tokens("item_8668, item_33."))
    assert any(token[0].isdigit() and token[-1] in ",." for token in tokens), tokens


def test_long_texts_and_tokenizers_that_cannot_write_ids_are_told(tokenizer: str, tmp_path: Path) -> None:
    vocabulary = load_vocabulary(tokenizer)
    prompt = fill(SHORT, 4, range(1, 9))
    with pytest.raises(
        UserError, match=r"^task.max_tokens: the prompt of user 4 has [0-9]+ tokens, and 12 may be; raise it$"
    ):
        tokenise(
            vocabulary, [fill(SHORT, 3, [1]), prompt], 12, lambda place: (f"the prompt of user {3 + place}", "raise it")
        )
    digitless = str(unigram_tokenizer(tmp_path / "digitless", left_out="7"))
    with pytest.raises(UserError, match=r"^task.tokenizer: .*digitless: has no token for the digit 7, and ids are"):
        load_vocabulary(digitless)
    with pytest.raises(
        UserError,
        match=r"^task.tokenizer: .*nowhere: there is no such directory here, and the hub gives none \(.*\); give a dir",
    ):
        load_vocabulary(str(tmp_path / "nowhere"))

    class Endless:
        is_fast, eos_token_id = True, None

    with pytest.raises(UserError, match="has no token for the end of a text"):
        Vocabulary("endless", Endless())


def test_a_missing_package_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    load_vocabulary.cache_clear()
    with pytest.raises(UserError, match=r'transformers is not installed; `pip install "eupmim-dist\[elmrec\]"`'):
        load_vocabulary(PLAIN)


@pytest.mark.parametrize("mix", [["sequential", "direct"], ["direct"], ["sequential", "direct", "direct"]])
def test_any_number_of_ranks_samples_the_same_and_steps_are_of_one_kind(
    store: InteractionStore, mix: list[str]
) -> None:
    for step in range(5):
        whole = task_of(store, mix=mix).sample(step)
        assert KINDS[whole.kind] == mix[step % len(mix)]
        for size in (2, 3):
            parts = [task_of(store, rank, size, mix=mix).sample(step) for rank in range(size)]
            assert {(part.num_predictions, part.capacity, part.kind) for part in parts} == {
                (whole.num_predictions, -(-BATCH // size), whole.kind)
            }
            for name in ("user", "items", "answer"):
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
            rows = [row[row != NO_ROW].tolist() for part in parts for row in part.tokens]
            assert rows == [row[row != NO_ROW].tolist() for row in whole.tokens]


def answered(task: Prompts, batch: PromptBatch) -> list[int]:
    assert batch.answer is not None
    return [task.item_answers.index(row[row != NO_ROW].tolist()) for row in batch.answer]


def left_out(task: Prompts, step: int) -> set[tuple[int, int]]:
    users, items = task.predicted(step)
    return set(zip(users.tolist(), items.tolist(), strict=True))


def after(store: InteractionStore, user: int, target: int) -> list[int]:
    """Training items from the target on."""
    own = store.items[store.offsets[user] : store.offsets[user + 1] - 2].tolist()
    return own[own.index(target) :]


def test_sequential_prompts_are_of_training_items_in_order(store: InteractionStore) -> None:
    task, seen = task_of(store, mix=["sequential"]), Counter()
    for step in range(40):
        batch = task.sample(step)
        assert batch.answer is not None
        assert batch.num_predictions == int((batch.answer != NO_ROW).sum())
        assert task.targets(step).tolist() == answered(task, batch)
        assert left_out(task, step) == {
            (user, item)
            for user, target in zip(batch.user.tolist(), answered(task, batch), strict=True)
            for item in after(store, user, target)
        }
        for user, row, target in zip(batch.user.tolist(), batch.items, answered(task, batch), strict=True):
            own = store.items[store.offsets[user] : store.offsets[user + 1] - 2].tolist()
            items = [*row[row != NO_ROW].tolist(), target]
            start = own.index(items[0])
            assert own[start : start + len(items)] == items
            assert 2 <= len(items) <= 7
            seen[len(items)] += 1
    assert set(seen) == set(range(2, 8))


def test_direct_prompts_have_the_target_among_items_that_are_not_the_users(store: InteractionStore) -> None:
    task, places = task_of(store, mix=["direct"]), Counter()
    for step in range(40):
        batch = task.sample(step)
        assert left_out(task, step) == set(zip(batch.user.tolist(), answered(task, batch), strict=True))
        for user, row, target in zip(batch.user.tolist(), batch.items.tolist(), answered(task, batch), strict=True):
            own = set(store.items[store.offsets[user] : store.offsets[user + 1] - 2].tolist())
            assert len(set(row)) == len(row)
            assert own & {item for item in row if item != NO_ROW} == {target}
            assert len([item for item in row if item != NO_ROW]) == 1 + min(7, 30 - len(own))
            places[row.index(target)] += 1
    assert set(places) == set(range(8))
    assert max(places.values()) < 2 * min(places.values())


@pytest.mark.parametrize("kind", ["sequential", "direct"])
def test_training_may_ask_in_the_short_wording_alone(store: InteractionStore, kind: str) -> None:
    """Of the same users and items, with the same answers."""
    many, short = (task_of(store, mix=[kind], wordings=wordings).sample(1) for wordings in ("many", "short"))
    assert torch.equal(many.items, short.items)
    assert torch.equal(many.answer, short.answer)
    vocabulary = task_of(store).vocabulary
    for user, items, tokens in zip(short.user.tolist(), short.items.tolist(), short.tokens, strict=True):
        text = fill(SHORT, user, [item for item in items if item != NO_ROW]).text
        assert tokens[tokens != NO_ROW].tolist() == vocabulary.tokens(text)
    assert many.tokens.shape[1] > short.tokens.shape[1]


def test_candidates_are_asked_for_in_an_order_that_tells_nothing(store: InteractionStore) -> None:
    task = task_of(store)
    candidates = torch.tensor([[3, 9, 4, NO_ROW], [3, 9, 4, 8], [3, 9, 4, 8]])
    users = np.array([5, 5, 6])
    batch = task.to_choose(users, candidates)
    assert [sorted(row) for row in batch.items.tolist()] == [sorted(row) for row in candidates.tolist()]
    again = task.to_choose(users, candidates.flip(1))
    assert torch.equal(again.items, batch.items)
    assert batch.items[1].tolist() != batch.items[2].tolist()
    firsts = Counter(task.to_choose(np.arange(40), torch.arange(1, 5).expand(40, -1)).items[:, 0].tolist())
    assert len(firsts) == 4
    assert batch.answer is None


def test_padding_may_be_learned_as_the_authors_do(store: InteractionStore) -> None:
    task = task_of(store, mix=["sequential"], learn_padding=True, tokenizer=PLAIN)
    plain = task_of(store, mix=["sequential"]).sample(0)
    batch = task.sample(0)
    assert batch.answer is not None
    assert plain.answer is not None
    assert batch.num_predictions == batch.answer.numel()
    assert torch.equal(batch.answer, plain.answer.clamp(min=0))


def test_explanations_are_gone_through_and_cut(tmp_path: Path, tokenizer: str) -> None:
    texts = [f"text {'x' * n}" for n in range(11)]
    store = with_explanations(tmp_path, texts)
    task = task_of(store, mix=["explanation"], tokenizer=tokenizer, max_answer_tokens=9)
    seen = Counter()
    for step in range(11):
        batch = task.sample(step)
        assert batch.answer is not None
        assert batch.answer.shape[1] <= 9
        for row, user, item in zip(batch.answer, batch.user.tolist(), batch.items[:, 0].tolist(), strict=True):
            tokens = row[row != NO_ROW].tolist()
            assert tokens[-1] == task.vocabulary.end
            assert texts[user].startswith(task.vocabulary.decode(tokens))
            assert item == store.items[store.offsets[user]]
            seen[user] += 1
    assert set(seen.values()) == {8}  # 88 samples of 11 records


def test_explanations_that_are_not_there_are_told(store: InteractionStore) -> None:
    with pytest.raises(UserError, match=r"^task.mix: explanation, and .*store has no explanations.parquet; prepare it"):
        task_of(store, mix=["explanation"]).sample(0)


def test_what_is_asked_of_a_user_to_rank_for(store: InteractionStore) -> None:
    task = task_of(store)
    users = store.users("test")[:3]
    batch = task.to_rank(users, store.evaluation_window(users, "test")[0])
    for row, user in enumerate(users.tolist()):
        own = store.items[store.offsets[user] : store.offsets[user + 1] - 1].tolist()[-6:]
        assert batch.items[row].tolist()[: len(own)] == own
        text = fill(SHORT, user, own).text
        assert batch.tokens[row][batch.tokens[row] != NO_ROW].tolist() == task.vocabulary.tokens(text)
    assert open_store(store.path, World(0, 1, 0, 1, torch.device("cpu"))).num_users == store.num_users


def test_the_hub_is_not_asked_for_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("models", "models/t5", "./t5", "../t5", "a/b/t5", "/t5"):
        assert where(name) == {"local_files_only": True}, name
    for name in ("t5-small", "google-t5/t5-small"):
        assert where(name) == {"local_files_only": False}, name
