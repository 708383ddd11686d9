"""The severity metrics as loops over samples, classes and pairs, from their formulas."""

from __future__ import annotations

from itertools import combinations

import torch

from tightframe.hierarchy import Tree


def four_leaves():
    """Return the tree of the worked examples."""
    return Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})


def random_tree(generator, num_nodes):
    """Each node below any earlier one; leaves are the classes."""
    return Tree.from_parents([-1] + [int(torch.randint(i, (1,), generator=generator)) for i in range(1, num_nodes)])


def random_distances(generator, num_classes, levels):
    """Symmetric, of few levels that no tree need have."""
    values = torch.randint(1, levels + 1, (num_classes, num_classes), generator=generator).double() / 4
    return values.triu(diagonal=1) + values.triu(diagonal=1).T


def order(scores):
    """Classes from the highest score down, of equal ones the lower index first."""
    return sorted(range(len(scores)), key=lambda c: (-float(scores[c]), c))


def ranked(scores, label, D):
    return [float(D[label][c]) for c in order(scores)]


def ranks_of(values):
    """Dense ranks: how many different values lie below."""
    return [len({v for v in values if v < value}) for value in values]


def slot_weights(ideal):
    weights = []
    for i, rank in enumerate(ideal):
        n, j = ideal.count(rank), i - ideal.index(rank)
        high = 2.0**-rank
        low = 0.0 if rank == max(ideal) else high / 2
        weights.append(1.0 if rank == 0 else high - (high - low) * j / n)
    return weights


def raw_hops(values, k):
    if k == 1:
        return float(values[0] == 0)
    r = ranks_of(values)
    e = sorted(r)
    w = slot_weights(e)
    lost = sum(w[i] * abs(e[i] - r[i]) for i in range(k))
    return 1 - lost / sum(w[i] * abs(e[i] - e[k - 1 - i]) for i in range(k))


def concordance(values):
    pairs = [(a, b) for a, b in combinations(values, 2) if a != b]
    return sum(a < b for a, b in pairs) / len(pairs)


def metrics(scores, label, D, top_k):
    """Every metric of one sample by id."""
    values = ranked(scores, label, D)
    off = [float(D[i][j]) for i in range(len(D)) for j in range(len(D)) if i != j]
    similarity = [1 - v / max(off) for v in values]
    best = sorted(similarity, reverse=True)
    found = {
        "error": float(order(scores)[0] != label),
        "near_mistakes": float(values[0] == min(off)),
        "far_mistakes": float(values[0] == max(off)),
        "hops": min(max(raw_hops(values, len(values)), 0), 1),
        "hops_raw": raw_hops(values, len(values)),
        "concordance": concordance(values),
        "hierarchical_distance@1": values[0],
    }
    for k in top_k:
        found[f"hierarchical_distance@{k}"] = sum(values[:k]) / k
        found[f"best@{k}"] = min(values[:k])
        found[f"hierarchical_precision@{k}"] = sum(similarity[:k]) / sum(best[:k])
        found[f"hierarchical_recall@{k}"] = sum(similarity[:k]) / sum(similarity)
        found[f"hops@{k}"] = min(max(raw_hops(values, k), 0), 1)
        found[f"hops_raw@{k}"] = raw_hops(values, k)
    return found


def risk(logits, D):
    """Expected distance of every class."""
    powers = (logits.double() - logits.double().max()).exp().tolist()
    return [sum(float(D[k][j]) * p for j, p in enumerate(powers)) / sum(powers) for k in range(len(D))]


def tree_ordered(logits, D):
    """Class indices: the likeliest first, the others by distance to it, then likelihood, then index."""
    by_logit = order(logits)
    return sorted(range(len(D)), key=lambda c: (float(D[by_logit[0]][c]), by_logit.index(c)))
