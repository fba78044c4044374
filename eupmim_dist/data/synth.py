"""Example data with planted structure: what a multi-interest model with user profiles is there to find.

Items lie in topics of equal size, every topic in four styles, and are unequally popular (Zipf). A user has two to
four topics; which ones depends on his profile a little, which style of a topic he likes a lot, and separately
for every topic, so that his items in one topic say less about another topic than his profile does. His history is
a row of sessions, each from one of his topics, in which no item comes twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.lib.format import open_memmap

from eupmim_dist.data.formats.events import split_codes
from eupmim_dist.data.formats.lines import Progress
from eupmim_dist.data.store import Attribute
from eupmim_dist.data.writer import StoreWriter, item_dtype, write_table
from eupmim_dist.errors import UserError

ATTRIBUTES = (Attribute("age", 7), Attribute("gender", 2), Attribute("occupation", 21))
MIN_LENGTH = 5
MAX_INTERESTS = 6
NUM_STYLES = 4
MIN_TOPICS = 4
BLOCK_USERS = 8192  # users drawn from one seed; changing it changes the data

AGE_SHARES = (0.04, 0.18, 0.35, 0.20, 0.09, 0.08, 0.06)
ZIPF_TOPICS = 0.6  # exponent of the popularity of topics
ZIPF_ITEMS = 1.0  # ... and of the items of one style of a topic
OWN_TOPIC_SHARE = 0.5  # topics drawn from the ranking of the user's age and gender instead of everybody's
TYPICAL_STYLE_SHARE = 0.9  # how often a user likes the style that is typical of his profile
OTHER_STYLE_WEIGHT = 0.05  # how much less the other styles of a topic of his attract him
MEAN_SESSION = 6
FORWARD_SHARE = 0.9
FOLLOW_SHARE = 0.9


@dataclass(frozen=True)
class World:
    """What all users share. T topics of S items each.

    `item_id` [T, S]: the id of each place. `style` [S], `weight` [S]: of each place in a topic. `topic_cdf` [T]:
    of popularity ranks. `ranking` [1 + 14, T]: topic by popularity rank, for everybody and for each age and
    gender. `liked_style` [T, 21]: the typical style by occupation (odd topics) or by age and gender (even).
    """

    item_id: np.ndarray
    style: np.ndarray
    weight: np.ndarray
    topic_cdf: np.ndarray
    ranking: np.ndarray
    liked_style: np.ndarray
    following: np.ndarray
    occ_class: np.ndarray
    age_band: np.ndarray


def synthesize(
    out: Path, num_users: int, num_items: int, *, seed: int, mean_length: int, force: bool, progress: Progress
) -> dict[str, Any]:
    """Write a store of `num_users` users and `num_items` items to `out`; return its manifest.

    The data is a function of the sizes and the seed. Memory: 8 bytes a user, the item table and one block of
    users (some 100 MB), so that 10 million users fit a small machine.

    Raises:
        UserError: sizes that cannot be met, or an `out` that is in use.
    """
    if num_users < 10:
        raise UserError(f"--users {num_users}: give 10 or more, so that 80/10/10 leaves none of the splits empty")
    if mean_length < 2 * MIN_LENGTH:
        raise UserError(f"--mean-length {mean_length}: give {2 * MIN_LENGTH} or more")
    if num_items < 2 * MIN_TOPICS * mean_length:
        raise UserError(
            f"--items {num_items}: too few for histories of {mean_length} items on average; "
            f"give {2 * MIN_TOPICS * mean_length} or more, or a --mean-length of {num_items // (2 * MIN_TOPICS)}"
        )
    world = make_world(num_items, mean_length, seed)
    with StoreWriter(out, force=force) as writer:
        directory = writer.directory
        offsets = open_memmap(directory / "offsets.npy", "w+", np.int64, (num_users + 1,))
        offsets[0] = 0
        blocks = range(0, num_users, BLOCK_USERS)
        for start in blocks:
            end = min(start + BLOCK_USERS, num_users)
            offsets[start + 1 : end + 1] = _lengths(seed, start, end, mean_length, world.style.size)
        np.cumsum(offsets, out=offsets)
        dtype = item_dtype(num_items + 1)
        items = open_memmap(directory / "items.npy", "w+", dtype, (int(offsets[-1]),))
        attributes = open_memmap(directory / "attributes.npy", "w+", np.int32, (num_users, len(ATTRIBUTES)))
        for start in blocks:
            end = min(start + BLOCK_USERS, num_users)
            profile, history = _users(world, seed, start, np.diff(offsets[start : end + 1]))
            attributes[start:end] = profile
            items[offsets[start] : offsets[end]] = history
            progress("drawing histories", end, num_users)
        for array in (offsets, items, attributes):
            array.flush()
        progress("writing", 0, 0)
        np.save(directory / "split.npy", split_codes(num_users))
        write_table(directory / "users.parquet", 0, {"raw_id": pl.int_range(num_users, eager=True).cast(pl.String)})
        item_ids = pl.int_range(1, num_items + 1, eager=True).cast(pl.String)
        write_table(directory / "items.parquet", 1, {"raw_id": item_ids, "title": _titles(world, num_items)})
        return writer.commit(
            name=out.absolute().name,
            source=f"synth {num_users} users, {num_items} items, seed {seed}, mean length {mean_length}",
            split_rule="by_user",
            attributes=ATTRIBUTES,
            num_item_rows=num_items + 1,
        )


def make_world(num_items: int, mean_length: int, seed: int) -> World:
    """Draw topics, styles and popularity. Items that do not fill a topic are never drawn."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    num_topics = max(MIN_TOPICS, round(num_items / (1.5 * mean_length)))
    size = num_items // num_topics
    style = np.arange(size) % NUM_STYLES
    popularity = 1.0 / np.arange(1, num_topics + 1) ** ZIPF_TOPICS
    num_traitss = ATTRIBUTES[0].cardinality * ATTRIBUTES[1].cardinality
    everybody = np.arange(num_topics)
    return World(
        item_id=(rng.permutation(num_items) + 1)[: num_topics * size].reshape(num_topics, size),
        style=style,
        weight=1.0 / (np.arange(size) // NUM_STYLES + 1) ** ZIPF_ITEMS,
        topic_cdf=np.cumsum(popularity) / popularity.sum(),
        ranking=np.stack([everybody, *(rng.permutation(num_topics) for _ in range(num_traitss))]),
        occ_class=rng.permutation(21)%4,
        age_band=np.array([0,0,1,1,2,2,2]),following=rng.integers(num_topics, size=(num_topics, 4,4)),
        liked_style=rng.integers(NUM_STYLES, size=(num_topics, ATTRIBUTES[2].cardinality)),
    )


def _lengths(seed: int, start: int, end: int, mean_length: int, longest: int) -> np.ndarray:
    """int64 [end - start]: 5 to `longest`, exponentially many above 5, `mean_length` on average or a bit less."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, start)))
    drawn = MIN_LENGTH + rng.gamma(3, (mean_length - MIN_LENGTH)/3, end - start)
    return np.minimum(drawn, longest).astype(np.int64)


def _users(world: World, seed: int, start: int, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Profiles [B, 3] of a block of B users from id `start` on, and their items one user after another."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2, start)))
    num_users, size = len(lengths), world.style.size
    age = rng.choice(len(AGE_SHARES), num_users, p=AGE_SHARES)
    gender = rng.integers(2, size=num_users)
    occupation = rng.integers(ATTRIBUTES[2].cardinality, size=num_users)
    num_interests = rng.integers(4, MAX_INTERESTS + 1, num_users)

    traits = np.stack([world.age_band[age], gender, world.occ_class[occupation]], axis=1)
    topic = _topics(world, rng, traits)  # [B, K]
    style = world.liked_style[topic, np.take_along_axis(traits, topic % 3, axis=1)]
    stray = rng.random(topic.shape) > TYPICAL_STYLE_SHARE
    style = np.where(stray, rng.integers(NUM_STYLES, size=topic.shape), style)

    # Exponential variables over their weights, ascending, draw without replacement with these weights.
    weight = np.where(world.style == style[..., None], world.weight, OTHER_STYLE_WEIGHT * world.weight)
    order = np.argsort(rng.standard_exponential(weight.shape, np.float32) / weight, axis=-1)  # [B, K, S]

    position = np.arange(lengths.max())
    shape = (num_users, len(position))
    jump = np.where(rng.random(shape) < FORWARD_SHARE, 1, rng.integers(1, num_interests[:, None], shape))
    switch = rng.random(shape) * MEAN_SESSION < 1
    interest = np.cumsum(np.where(switch, jump, 0), axis=1) % num_interests[:, None]  # [B, positions]
    drawn = np.zeros_like(interest)  # how many items of the same interest came before
    for k in range(MAX_INTERESTS):
        of_this = interest == k
        drawn[of_this] = (np.cumsum(of_this, axis=1) - 1)[of_this]
    user, at = np.nonzero(position < lengths[:, None])
    k = interest[user, at]
    place = order[user, k, drawn[user, at]]
    return np.stack([age, gender, occupation], axis=1), world.item_id[topic[user, k], place]


def _topics(world: World, rng: np.random.Generator, traits: np.ndarray) -> np.ndarray:
    """int [B, MAX_INTERESTS]: distinct topics of users of `traits` [B] (age and gender)."""
    num_topics = world.topic_cdf.size
    topic = np.empty((len(traits), MAX_INTERESTS), np.int64)
    rank = lambda: np.minimum(np.searchsorted(world.topic_cdf, rng.random(len(traits))), num_topics - 1)
    topic[:, 0] = rank()
    for k in range(1, MAX_INTERESTS):
        prev = topic[:, k - 1]
        nxt = world.following[prev, traits[np.arange(len(traits)), (prev+1)%3], traits[np.arange(len(traits)), (prev+2)%3]]
        topic[:, k] = np.where(rng.random(len(traits)) < FOLLOW_SHARE, nxt, rank())
        while (taken := (topic[:, :k] == topic[:, k : k + 1]).any(axis=1)).any():
            topic[taken, k] = (topic[taken, k] + 1) % num_topics
    return topic


def _titles(world: World, num_items: int) -> pl.Series:
    """String [items]: `Topic 07: item 123`, the number being the place within the topic."""
    num_topics, size = world.item_id.shape
    place = np.full(num_items, -1, np.int64)
    place[world.item_id.ravel() - 1] = np.arange(num_topics * size)
    width = len(str(num_topics - 1))
    frame = pl.DataFrame({"place": place}).select(
        pl.when(pl.col("place") < 0)
        .then(pl.lit("Never drawn"))
        .otherwise(
            pl.format(
                "Topic {}: item {}",
                (pl.col("place") // size).cast(pl.String).str.zfill(width),
                pl.col("place") % size,
            )
        )
    )
    return frame.to_series()
