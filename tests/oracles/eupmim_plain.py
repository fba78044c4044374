"""E-UPMiM and the authors' ComiRec port, one sample at a time (reference/eupmim.md, "Forward", "Loss").

An oracle: no batching, no nn.Module, no helpers shared with the package. It works on a dict of tensors under
the authors' released names, in whatever float type they have, is differentiable, and has no dropout.
B users, A attributes, L history, N negatives, K interests, D dim, n real (unpadded) history positions.
An all-padding history is an error for E-UPMiM: the reference leaves it undefined.

Names beyond the released ones: the linear encoder is `multi_interest_network.encoder.{weight,bias}`, the
capsule extractor `multi_interest_network.weights`.
"""

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]
ITEMS = "mid_embeddings_var.weight"
USERS = "user_embeddings_var.weight"
ATTRIBUTES = tuple(f"user_{name}_embedding_matrix.weight" for name in ("age", "gender", "occup"))
EXTRACTOR = "multi_interest_network."
PROFILE_ATTENTION = "_user_profile_interest_attention.fc_layers."


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """y = W x + b for one vector, or for every row of a matrix."""
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def layer_norm(weights: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer norm of one vector (biased variance, PyTorch's default epsilon)."""
    centred = x - x.mean()
    centred = centred / (centred.square().mean() + eps).sqrt()
    return centred * weights[name + ".weight"] + weights[name + ".bias"]


def embed(weights: Weights, history: Tensor, mask: Tensor) -> Tensor:
    """Forward 1: e = E_item[history] * mask of one sample, [L, D]."""
    return torch.stack([weights[ITEMS][item] * mask[i] for i, item in enumerate(history.tolist())])


def profile_vector(weights: Weights, user: Tensor, attributes: Tensor, tables: list[Tensor]) -> Tensor:
    """Forward 1: mean of the user row and one row of every attribute table, [D]."""
    rows = [table[value] for table, value in zip(tables, attributes.tolist(), strict=True)]
    return torch.stack([weights[USERS][int(user)], *rows]).mean(dim=0)


def adjacency(e: Tensor, mask: Tensor, p: Tensor) -> Tensor:
    """Forward 2: A_ij = sigmoid(sum_d e_i e_j p) mask_i mask_j, [L, L]."""

    def entry(i: int, j: int) -> Tensor:
        return torch.sigmoid((e[i] * e[j] * p).sum()) * mask[i] * mask[j]

    return torch.stack([torch.stack([entry(i, j) for j in range(len(e))]) for i in range(len(e))])


def normalise(a: Tensor) -> Tensor:
    """Forward 2: every row of A + I over the square root of its sum (left only; an infinite value is 0)."""
    rows = []
    for row in a + torch.eye(len(a), dtype=a.dtype):
        factor = row.sum().pow(-0.5)
        rows.append(row * factor if torch.isfinite(factor) else torch.zeros_like(row))
    return torch.stack(rows)


def encoder_layer(weights: Weights, name: str, x: Tensor, num_heads: int) -> Tensor:
    """Post-norm Transformer encoder layer over the n real positions: [n, D] -> [n, D] (ReLU feed-forward)."""
    n, dim = x.shape
    width = dim // num_heads
    projected = x @ weights[name + "self_attn.in_proj_weight"].T + weights[name + "self_attn.in_proj_bias"]
    query, key, value = projected.split(dim, dim=1)
    rows = []
    for i in range(n):
        heads = []
        for h in range(num_heads):
            part = slice(h * width, (h + 1) * width)
            alpha = torch.softmax(key[:, part] @ query[i, part] / math.sqrt(width), dim=0)
            heads.append(alpha @ value[:, part])
        attended = linear(weights, name + "self_attn.out_proj", torch.cat(heads))
        y = layer_norm(weights, name + "norm1", x[i] + attended)
        fed = linear(weights, name + "linear2", torch.relu(linear(weights, name + "linear1", y)))
        rows.append(layer_norm(weights, name + "norm2", y + fed))
    return torch.stack(rows)


def encode(weights: Weights, x: Tensor, encoder: str, num_heads: int) -> Tensor:
    """Forward 4: H [n, D]. `transformer`: stacked layers; `linear`: our definition, H_i = Linear(D, D)(x_i).

    Only real positions enter: a masked key has attention weight exactly 0 and a masked H_i is never used.
    """
    name, layer = EXTRACTOR + "encoder", 0
    if encoder == "linear":
        return linear(weights, name, x)
    while f"{name}.layers.{layer}.linear1.weight" in weights:
        x = encoder_layer(weights, f"{name}.layers.{layer}.", x, num_heads)
        layer += 1
    return x


def sequential_attention(weights: Weights, h: Tensor, gram_schmidt: bool) -> Tensor:
    """Forward 4: K interests one after another from H [n, D], each orthogonal to those before it, [K, D]."""
    c = h.mean(dim=0)
    found: list[Tensor] = []
    while not found or f"{EXTRACTOR}query_mlps.{len(found) - 1}.0.weight" in weights:
        query = c
        if found:
            name = f"{EXTRACTOR}query_mlps.{len(found) - 1}."
            hidden = torch.tanh(linear(weights, name + "0", torch.cat([*found, c])))
            query = linear(weights, name + "2", hidden)
        scores = []
        for h_i in h:
            hidden = linear(weights, EXTRACTOR + "W_q", query) + linear(weights, EXTRACTOR + "W_h", h_i)
            scores.append(linear(weights, EXTRACTOR + "W_a", torch.tanh(hidden)))
        v = torch.softmax(torch.cat(scores), dim=0) @ h
        if gram_schmidt:
            for u in found:
                v = v - (v @ u) / (u @ u + 1e-6) * u
        found.append(v)
    return torch.stack(found)


def squash(s: Tensor) -> Tensor:
    """||s||^2 / (1 + ||s||^2) / sqrt(||s||^2 + 1e-9) times s ("The authors' ComiRec port")."""
    square = s @ s
    return square / (1 + square) / torch.sqrt(square + 1e-9) * s


def capsules(maps: Tensor, x: Tensor, mask: Tensor, num_iterations: int = 3) -> Tensor:
    """Dynamic routing ("The authors' ComiRec port"): maps [1, L, K*D, D], x [L, D], mask [L] -> [K, D].

    Interest k at position i sees hat = maps[0, i, k*D : (k+1)*D] @ x_i. Only the last iteration has a gradient.
    """
    length, dim = x.shape
    num_interests = maps.shape[2] // dim
    hats = [(maps[0, i] @ x[i]).reshape(num_interests, dim) for i in range(length)]
    logits = [torch.zeros(num_interests, dtype=x.dtype) for _ in range(length)]
    out: list[Tensor] = []
    for iteration in range(num_iterations):
        last = iteration == num_iterations - 1
        seen = hats if last else [hat.detach() for hat in hats]
        coupling = [torch.softmax(logits[i], dim=0) * mask[i] for i in range(length)]
        out = [squash(sum(coupling[i][k] * seen[i][k] for i in range(length))) for k in range(num_interests)]
        if not last:
            logits = [logits[i] + (seen[i] * torch.stack(out)).sum(dim=1) for i in range(length)]
    return torch.stack(out)


def attend_profile(weights: Weights, p: Tensor, m: Tensor, mode: str) -> Tensor:
    """Forward 6 and 7 for one interest: z_k [D] from the profile p and M_k.

    `seed`: three attention weights, zeros up to D; `full`: D weights (the last Linear has D outputs).
    """
    hidden = torch.relu(linear(weights, PROFILE_ATTENTION + "0", torch.cat([p, m])))
    attention = torch.sigmoid(linear(weights, PROFILE_ATTENTION + "2", hidden))
    expected = {"seed": 3, "full": len(p)}[mode]
    if len(attention) != expected:
        raise ValueError(f"profile attention {mode!r}: {expected} outputs, not {len(attention)}")
    a = torch.cat([attention, torch.zeros(len(p) - expected, dtype=p.dtype)]) * p
    return linear(weights, "fc_layers.1", torch.relu(linear(weights, "fc_layers.0", torch.cat([a, m]))))


def plain_eupmim(
    weights: Weights,
    history: Tensor,
    mask: Tensor,
    user: Tensor,
    attributes: Tensor,
    *,
    num_levels: int = 3,
    num_heads: int = 4,
    attribute_tables: list[Tensor] | None = None,
    extractor: str = "transformer",
    profile_attention: str = "seed",
    use_profile: bool = True,
    use_graph: bool = True,
    use_profile_attention: bool = True,
    gram_schmidt: bool = True,
) -> dict[str, Tensor]:
    """Forward 1-7: {"interests" z [B, K, D], "adjacency_sum" [], "profile" p [B, D]}.

    attributes [B, A]: a column per attribute table, by default age, gender, occupation (the files' order).
    extractor: transformer | linear | capsule (which knows no gram_schmidt). The switches:
    use_profile=False: p is all ones in the adjacency, and no profile attention ("profile" is those ones);
    use_profile_attention=False: z_k = M_k, steps 6 and 7 are both left out;
    use_graph=False: the one level is x_0, and adjacency_sum is 0.
    """
    tables = [weights[name] for name in ATTRIBUTES] if attribute_tables is None else attribute_tables
    interests, profiles = [], []
    total = torch.zeros((), dtype=weights[ITEMS].dtype)
    for b in range(len(history)):
        m = mask[b].to(weights[ITEMS].dtype)
        real = [i for i in range(len(m)) if m[i] > 0]
        if not real:
            raise ValueError(f"row {b}: the history is all padding")
        e = embed(weights, history[b], m)
        p = profile_vector(weights, user[b], attributes[b], tables) if use_profile else torch.ones_like(e[0])
        levels = [e]
        if use_graph:
            a = adjacency(e, m, p)
            total = total + a.sum()
            for _ in range(num_levels):
                levels.append(normalise(a) @ levels[-1])
            del levels[0]  # "Levels x_1..x_P are used, x_0 is not"
        extracted = []
        for x in levels:
            if extractor == "capsule":
                extracted.append(capsules(weights[EXTRACTOR + "weights"], x, m))
            else:
                h = encode(weights, x[real], extractor, num_heads)
                extracted.append(sequential_attention(weights, h, gram_schmidt))
        mean = torch.stack(extracted).mean(dim=0)
        z = list(mean)
        if use_profile and use_profile_attention:
            z = [attend_profile(weights, p, m_k, profile_attention) for m_k in mean]
        interests.append(torch.stack(z))
        profiles.append(p)
    return {"interests": torch.stack(interests), "adjacency_sum": total, "profile": torch.stack(profiles)}


def plain_comirec(weights: Weights, history: Tensor, mask: Tensor, *, project: bool = False) -> Tensor:
    """The authors' ComiRec port: raw capsules [B, K, D]; project adds the training-time relu(Linear(D, D))."""
    maps = weights["capsule_network.weights"]
    pairs = zip(history, mask.to(weights[ITEMS].dtype), strict=True)
    interests = torch.stack([capsules(maps, embed(weights, items, m), m) for items, m in pairs])
    return torch.relu(linear(weights, "capsule_network.proj", interests)) if project else interests


def plain_loss(
    weights: Weights, batch: dict[str, Tensor], l2: float = 1e-5, adjacency_weight: float = 1e-5, **model: object
) -> dict[str, Tensor]:
    """Loss: {"cross_entropy", "adjacency", "l2", "loss"}; both penalties come weighted, "loss" is the sum.

    batch: history [B, L], mask [B, L], user [B], attributes [B, A], target [B], negatives [B, N]; `model` goes
    to plain_eupmim. L2 covers every tensor of `weights`, and attribute_tables that are not among them.
    """
    fields = [batch[name] for name in ("history", "mask", "user", "attributes")]
    out = plain_eupmim(weights, *fields, **model)
    losses = []
    for b, z in enumerate(out["interests"]):
        candidates = [int(batch["target"][b]), *batch["negatives"][b].tolist()]
        scores = torch.stack([torch.stack([z_k @ weights[ITEMS][j] for z_k in z]).max() for j in candidates])
        losses.append(torch.logsumexp(scores, dim=0) - scores[0])
    extra = model.get("attribute_tables") or []
    parameters = {id(t): t for t in [*weights.values(), *extra]}.values()
    cross_entropy = torch.stack(losses).mean()
    graph = adjacency_weight * out["adjacency_sum"]
    squares = l2 * 0.5 * sum(t.square().sum() for t in parameters)
    loss = cross_entropy + graph + squares
    return {"cross_entropy": cross_entropy, "adjacency": graph, "l2": squares, "loss": loss}
