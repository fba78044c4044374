"""Example data with planted structure: what a multi-interest model with user profiles is there to find.

Items lie in topics of equal size, every topic in four styles, and are unequally popular (Zipf). A user has four to
six topics and goes through them in sessions, mostly in the same order; no item comes twice. His profile has three
traits: age band, gender and class of occupation. One of them decides which style of a topic he likes, and this his
history shows; the other two decide which topic follows on it, and that only his profile tells beforehand.
"""

from __future__ import annotations

import math
import operator
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.lib.format import open_memmap

from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.sequences import MIN_LENGTH
from eupmim_dist.data.manifest import Attribute, StoreManifest
from eupmim_dist.data.splits import BY_USER
from eupmim_dist.data.writer import check_replaceable, item_dtype, new_store, write_manifest, write_table
from eupmim_dist.errors import UserError, shown
from eupmim_dist.files import check_out

ATTRIBUTES = (Attribute("age", 7), Attribute("gender", 2), Attribute("occupation", 21))
AGE_SHARES = (0.04, 0.18, 0.35, 0.20, 0.09, 0.08, 0.06)
AGE_BANDS = np.array([0, 0, 1, 1, 2, 2, 2])
OCCUPATION_CLASSES = 4
NUM_TRAITS = 3
MAX_TRAIT = 4  # no trait has more values

BLOCK_USERS = 8192  # users drawn from one seed: part of what the data is, like the figures below
LENGTH_SHAPE = 3.0  # of the gamma distribution of lengths
LONGEST = 1.5  # times the mean length; a topic holds as many items, so that none can run out
MIN_TOPICS = 8
NUM_STYLES = 4
MIN_INTERESTS, MAX_INTERESTS = 4, 6
ZIPF_TOPICS = 0.6  # exponent of the popularity of topics
ZIPF_ITEMS = 1.0  # ... and of the items of one style of a topic
TYPICAL_TOPIC_SHARE = 0.95  # how often the next topic is the one that goes with the profile
TYPICAL_STYLE_SHARE = 0.95  # how often the style is
OTHER_STYLE_WEIGHT = 0.03  # how much the other styles of a topic attract him
MEAN_SESSION = 5
NEXT_TOPIC_SHARE = 0.9  # sessions that go on to his next topic and not to any of his others

ITEM_BYTES, USER_BYTES, PLACE_BYTES = 100, 30, 21  # of memory, measured; of the places that a user may go to


@dataclass(frozen=True)
class World:
    """What all users share. T topics of S items each; a topic's kind, topic % 3, is the trait that sets the style.

    `item_id` [T, S]: the id of each place. `style` [S], `weight` [S]: of each place in a topic. `topic_cdf` [T]:
    the cumulative popularity. `occupation_class` [21]. `typical_style` [T, 4]: by the value of the topic's trait.
    `next_topic` [T, 4, 4]: by the values of the next two traits.
    """

    item_id: np.ndarray
    style: np.ndarray
    weight: np.ndarray
    topic_cdf: np.ndarray
    occupation_class: np.ndarray
    typical_style: np.ndarray
    next_topic: np.ndarray


def synthesize(
    out: Path, num_users: int, num_items: int, *, seed: int, mean_length: int, force: bool, progress: OnStage
) -> StoreManifest:
    """Write a store of `num_users` users and `num_items` items to `out`; return its manifest.

    The data is a function of the sizes and the seed. Memory: 8 bytes a user, the item table and one block of
    users (some 100 MB), so that 10 million users fit a small machine.

    Raises:
        UserError: sizes that cannot be met, or an `out` that is in use.
    """
    num_users, num_items = _whole("users", num_users), _whole("items", num_items)
    mean_length, seed = _whole("mean-length", mean_length), _whole("seed", seed)
    fewest = math.ceil(MIN_TOPICS * LONGEST * mean_length)
    if num_users < 10:
        raise UserError(f"--users {num_users}: give 10 or more, so that no split of 80/10/10 is empty")
    if mean_length < 2 * MIN_LENGTH:
        raise UserError(f"--mean-length {mean_length}: give {2 * MIN_LENGTH} or more")
    if num_items < fewest:
        raise UserError(
            f"--items {num_items}: too few for histories of {mean_length} items on average; "
            f"give {fewest} or more, or a shorter --mean-length"
        )
    if seed < 0:
        raise UserError(f"--seed {seed}: give 0 or more")
    check_out(out)
    check_replaceable(out, force=force)
    _check_room(out, num_users, num_items, mean_length)
    world = make_world(num_items, mean_length, seed)
    with new_store(out, force=force) as directory:
        offsets = open_memmap(directory / "offsets.npy", "w+", np.int64, (num_users + 1,))
        offsets[0] = 0
        blocks = range(0, num_users, BLOCK_USERS)
        for start in blocks:
            end = min(start + BLOCK_USERS, num_users)
            offsets[start + 1 : end + 1] = _lengths(seed, start, end, mean_length)
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
        np.save(directory / "split.npy", BY_USER.codes(num_users))
        raw_users = pl.int_range(num_users, eager=True).cast(pl.String)
        raw_items = pl.int_range(1, num_items + 1, eager=True).cast(pl.String)
        write_table(directory / "users.parquet", 0, {"raw_id": raw_users})
        write_table(directory / "items.parquet", 1, {"raw_id": raw_items, "title": _titles(world, num_items)})
        return write_manifest(
            directory,
            name=out.absolute().name,
            source=f"synth {num_users} users, {num_items} items, seed {seed}, mean length {mean_length}",
            split_rule=BY_USER.name,
            attributes=ATTRIBUTES,
            num_item_rows=num_items + 1,
        )


def _whole(option: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"--{option} {shown(value)}: give a whole number") from None
    if abs(number) >= 2**63:
        raise UserError(f"--{option} {shown(number)}: give a number below 2**63")
    return number


def _check_room(out: Path, num_users: int, num_items: int, mean_length: int) -> None:
    """UserError for what this machine's memory, or the disk, cannot hold, whatever else they hold."""
    size = num_items // _num_topics(num_items, mean_length)
    memory = {
        f"--items {num_items}": num_items * ITEM_BYTES,
        f"--users {num_users}": num_users * USER_BYTES,
        f"--mean-length {mean_length}": min(num_users, BLOCK_USERS) * MAX_INTERESTS * size * PLACE_BYTES,
    }
    largest, present = max(memory, key=memory.__getitem__), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory[largest] > present:
        wanted = f"needs {_gb(memory[largest])} of memory, and there are {_gb(present)}"
        raise UserError(f"{largest}: {wanted}; give a smaller number")
    disk = num_users * (21 + mean_length * np.dtype(item_dtype(num_items + 1)).itemsize)
    place = shutil.disk_usage(next(parent for parent in out.absolute().parents if parent.exists()))
    if disk > place.free and place.total:
        raise UserError(
            f"--users {num_users}: needs {_gb(disk)} of disk for their histories and profiles, and {out} has room for "
            f"{_gb(place.free)}; give fewer, or a shorter --mean-length"
        )


def _gb(size: int) -> str:
    return f"{-(-size // 10**9):,} GB"


def _num_topics(num_items: int, mean_length: int) -> int:
    return max(MIN_TOPICS, int(num_items / (LONGEST * mean_length)))


def make_world(num_items: int, mean_length: int, seed: int) -> World:
    """Draw topics, styles and popularity. Up to T - 1 items that do not fill a topic never occur."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    num_topics = _num_topics(num_items, mean_length)
    size = num_items // num_topics
    popularity = 1.0 / np.arange(1, num_topics + 1) ** ZIPF_TOPICS
    num_occupations = ATTRIBUTES[2].cardinality
    return World(
        item_id=(rng.permutation(num_items) + 1)[: num_topics * size].reshape(num_topics, size),
        style=np.arange(size) % NUM_STYLES,
        weight=(1.0 / (np.arange(size) // NUM_STYLES + 1) ** ZIPF_ITEMS).astype(np.float32),
        topic_cdf=np.cumsum(popularity) / popularity.sum(),
        occupation_class=rng.permutation(num_occupations) % OCCUPATION_CLASSES,
        typical_style=rng.integers(NUM_STYLES, size=(num_topics, MAX_TRAIT)),
        next_topic=rng.integers(num_topics, size=(num_topics, MAX_TRAIT, MAX_TRAIT)),
    )


def _lengths(seed: int, start: int, end: int, mean_length: int) -> np.ndarray:
    """int64 [end - start]: the lengths of the histories of a block of users."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, start)))
    above = 1.1 * (mean_length - MIN_LENGTH)  # more than the mean, to make up for the cut at the longest
    drawn = MIN_LENGTH + rng.gamma(LENGTH_SHAPE, above / LENGTH_SHAPE, end - start)
    return np.minimum(np.round(drawn), LONGEST * mean_length).astype(np.int64)


def _users(world: World, seed: int, start: int, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Profiles [B, 3] of a block of B users from id `start` on, and their items one user after another."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2, start)))
    num_users = len(lengths)
    age = rng.choice(len(AGE_SHARES), num_users, p=AGE_SHARES)
    gender = rng.integers(2, size=num_users)
    occupation = rng.integers(ATTRIBUTES[2].cardinality, size=num_users)
    traits = np.stack([AGE_BANDS[age], gender, world.occupation_class[occupation]], axis=1)

    topic = _topics(world, rng, traits)  # [B, K]
    style = world.typical_style[topic, np.take_along_axis(traits, topic % NUM_TRAITS, axis=1)]
    stray = rng.random(topic.shape) >= TYPICAL_STYLE_SHARE
    style = np.where(stray, rng.integers(NUM_STYLES, size=topic.shape), style)

    # Exponential variables over weights, ascending, are a draw without replacement with these weights.
    liked = world.style == style[..., None]
    wait = rng.standard_exponential(liked.shape, np.float32) / world.weight
    order = np.argsort(np.where(liked, wait, wait / OTHER_STYLE_WEIGHT), axis=-1)  # [B, K, S]

    interest = _sessions(rng, num_users, int(lengths.max()))  # [B, positions]
    nth = np.zeros_like(interest)  # how many items of the same interest came before
    for k in range(MAX_INTERESTS):
        of_this = interest == k
        nth[of_this] = (np.cumsum(of_this, axis=1) - 1)[of_this]
    user, position = np.nonzero(np.arange(interest.shape[1]) < lengths[:, None])
    taken = interest[user, position]
    place = order[user, taken, nth[user, position]]
    return np.stack([age, gender, occupation], axis=1), world.item_id[topic[user, taken], place]


def _topics(world: World, rng: np.random.Generator, traits: np.ndarray) -> np.ndarray:
    """int [B, MAX_INTERESTS]: distinct topics of users with `traits` [B, 3], each mostly set by the one before."""
    num_topics, num_users = world.topic_cdf.size, len(traits)
    everyone = np.arange(num_users)
    popular = np.searchsorted(world.topic_cdf, rng.random((num_users, MAX_INTERESTS)))
    topic = np.minimum(popular, num_topics - 1)  # the last cumulative share may round below 1
    for k in range(1, MAX_INTERESTS):
        before = topic[:, k - 1]
        first, second = (traits[everyone, (before + shift) % NUM_TRAITS] for shift in (1, 2))
        typical = rng.random(num_users) < TYPICAL_TOPIC_SHARE
        topic[:, k] = np.where(typical, world.next_topic[before, first, second], topic[:, k])
        while (taken := (topic[:, :k] == topic[:, k : k + 1]).any(axis=1)).any():
            topic[taken, k] = (topic[taken, k] + 1) % num_topics
    return topic


def _sessions(rng: np.random.Generator, num_users: int, num_positions: int) -> np.ndarray:
    """int [B, positions]: which of a user's interests each position of his history belongs to."""
    shape = (num_users, num_positions)
    num_interests = rng.integers(MIN_INTERESTS, MAX_INTERESTS + 1, (num_users, 1))
    step = np.where(rng.random(shape) < NEXT_TOPIC_SHARE, 1, rng.integers(1, num_interests, shape))
    begins = rng.random(shape) < 1 / MEAN_SESSION
    return np.cumsum(np.where(begins, step, 0), axis=1) % num_interests


def _titles(world: World, num_items: int) -> pl.Series:
    """String [items]: `Topic 07: item 123`, the number being the place within the topic."""
    num_topics, size = world.item_id.shape
    place = np.full(num_items, -1, np.int64)
    place[world.item_id.ravel() - 1] = np.arange(num_topics * size)
    topic = (pl.col("place") // size).cast(pl.String).str.zfill(len(str(num_topics - 1)))
    title = pl.format("Topic {}: item {}", topic, pl.col("place") % size)
    # Items that fill no topic have no title; nobody ever takes one.
    return pl.DataFrame({"place": place}).select(pl.when(pl.col("place") >= 0).then(title)).to_series()
