"""Naive evaluation of one user at a time (design 3.3) and the plain baselines (reference, "What was measured").

An oracle in plain numpy: whole score vectors, Python loops, no code shared with the package. Row 0 is the padding item.
K interests (1 for a baseline), D dim, R rows of the item table, N list length.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

PROTOCOLS = ("strict", "comirec", "seed", "elmrec_sequential", "elmrec_direct")
METRICS = ("hit_rate", "recall", "precision", "ndcg")


def dot_scores(interests: np.ndarray, items: np.ndarray) -> np.ndarray:
    """[K, D], [R, D] -> [K, R] dot products."""
    return np.stack([items @ vector for vector in interests])


def cosine_scores(interests: np.ndarray, items: np.ndarray, eps: float = 1e-8) -> np.ndarray:
    """[K, D], [R, D] -> [K, R] cosines; a norm below eps counts as eps, so a zero row scores 0."""
    rows = [vector / max(float(np.linalg.norm(vector)), eps) for vector in interests]
    columns = [item / max(float(np.linalg.norm(item)), eps) for item in items]
    return dot_scores(np.stack(rows), np.stack(columns))


def protocol_scores(protocol: str, interests: np.ndarray, items: np.ndarray) -> np.ndarray:
    """[K, R]: cosine for `seed`, dot product for the others (design 3.3)."""
    return cosine_scores(interests, items) if protocol == "seed" else dot_scores(interests, items)


def top_list(scores: np.ndarray, excluded: Iterable[int], num: int) -> list[int]:
    """The num best ids of one score vector [R], without the excluded ones; equal scores by smaller id."""
    banned = set(excluded)
    allowed = [j for j in range(len(scores)) if j not in banned]
    return sorted(allowed, key=lambda j: (-scores[j], j))[:num]


def discount(position: int) -> float:
    """1 / log2(position + 2), position from 0."""
    return 1.0 / math.log2(position + 2)


def user_metrics(
    protocol: str,
    scores: np.ndarray,
    seen: Sequence[int],
    targets: Sequence[int],
    num: int,
    *,
    exclude_seen: bool = True,
    negatives: Sequence[int] = (),
) -> dict[str, float]:
    """Design 3.3 for one user: scores [K, R], seen = every item before the cut, targets = every item from it on.

    strict: the best interest's score per item; pad and seen excluded; NDCG's ideal over min(N, |targets|).
    comirec: as strict, but seen items stay candidates; NDCG's ideal over the number of hits.
    seed: K separate lists, pad and seen kept; hits counted per list at the list's own positions, so one item
    counts up to K times; recall over |targets|, precision over N; NDCG's ideal over the number of hits.
    elmrec_sequential: as strict. elmrec_direct: one list of the negatives and the targets, nothing else.
    """
    wanted = set(targets)
    if protocol == "seed":
        lists = [top_list(row, (), num) for row in scores]
    else:
        banned = {0, *seen} if protocol in ("strict", "elmrec_sequential") and exclude_seen else {0}
        if protocol == "elmrec_direct":
            banned = set(range(scores.shape[1])) - {*negatives, *targets}
        lists = [top_list(scores.max(axis=0), banned, num)]
    hits, gain = 0, 0.0
    for ranked in lists:
        for position, item in enumerate(ranked):
            if item in wanted:
                hits += 1
                gain += discount(position)
    num_ideal = min(num, len(wanted)) if protocol not in ("comirec", "seed") else hits
    ideal = sum(discount(i) for i in range(num_ideal))
    return {
        "hit_rate": float(hits > 0),
        "recall": hits / len(wanted),
        "precision": hits / num,
        "ndcg": gain / ideal if hits else 0.0,
    }


def average(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Float64 mean of every metric over the users (design 3.3: every user counts once)."""
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}


def popularity_scores(sequences: Iterable[Sequence[int]], num_rows: int) -> np.ndarray:
    """[1, R] how often every item occurs in the training users' whole sequences."""
    counts = np.zeros(num_rows)
    for items in sequences:
        for item in items:
            counts[item] += 1
    return counts[None]


def ease_matrix(sequences: Sequence[Sequence[int]], num_rows: int, strength: float = 1000.0) -> np.ndarray:
    """EASE, [R, R] with a zero diagonal: P = (X'X + strength I)^-1, B_ij = -P_ij / P_jj.

    X is binary, one row per training user over the whole sequence; nothing is learned about row 0 (padding).
    """
    gram = np.zeros((num_rows, num_rows))
    for items in sequences:
        distinct = sorted(set(items))
        gram[np.ix_(distinct, distinct)] += 1
    precision = np.linalg.inv(gram + strength * np.eye(num_rows))
    weights = -precision / np.diag(precision)
    np.fill_diagonal(weights, 0.0)
    return weights


def path_weights(sequences: Sequence[Iterable[int]], num_rows: int) -> np.ndarray:
    """[users + R, users + R] the third power of the normalised graph of users and their items."""
    num_users = len(sequences)
    graph = np.zeros((num_users + num_rows, num_users + num_rows))
    for user, items in enumerate(sequences):
        for item in items:
            graph[user, num_users + item] = graph[num_users + item, user] = 1
    degree = graph.sum(0)
    roots = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
    return np.linalg.matrix_power(roots[:, None] * graph * roots, 3)


def cooccurrence_counts(
    sequences: Iterable[Sequence[int]], num_rows: int, window: int = 10, *, directed: bool = True
) -> np.ndarray:
    """[R, R] C_ij: how often j comes 1..window places after i in a sequence; undirected adds the transpose.

    Under strict this gives 0.1076 / 0.2409, as the reference has it, and undirected 0.0853 / 0.2039.
    """
    counts = np.zeros((num_rows, num_rows))
    for items in sequences:
        for place, first in enumerate(items):
            for second in items[place + 1 : place + 1 + window]:
                counts[first, second] += 1
    return counts if directed else counts + counts.T


def association_weights(sequences: Sequence[Sequence[int]], num_rows: int) -> np.ndarray:
    """[R, R] C_ij / (n_i + 10) / sqrt(n_j + 50): directed counts C, n_i how often i occurs; 0.1150 / 0.2352."""
    counts, taken = cooccurrence_counts(sequences, num_rows), popularity_scores(sequences, num_rows)[0]
    weights = np.zeros((num_rows, num_rows))
    for first in range(num_rows):
        for second in range(num_rows):
            weights[first, second] = counts[first, second] / (taken[first] + 10) / math.sqrt(taken[second] + 50)
    return weights


def matrix_scores(matrix: np.ndarray, history: Sequence[int], num_last: int = 10) -> np.ndarray:
    """[1, R]: the rows of the distinct items among the last num_last of the history, added up (EASE, counts)."""
    return sum(matrix[item] for item in sorted(set(history[-num_last:])))[None]
