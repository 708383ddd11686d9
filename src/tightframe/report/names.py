"""How a metric id is shown: a label, one line of meaning and its value under exact collapse."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

FEATURES = "features"
MAIN_METRICS = (
    "nc1.pinv",
    "cdnv",
    "nc2.equinorm.means",
    "nc2.max_angle.means",
    "nc3.distance",
    "nc4.agreement",
)

# Of the many numbers that a hierarchy gives, those that a leaderboard has room for.
MAIN_SEVERITY = ("mistake_severity", "hierarchical_distance@1", "hierarchical_distance@5", "hops")


@dataclass(frozen=True)
class Quantity:
    """One measured quantity as a reader sees it.

    Args:
        label: a few words.
        meaning: one line.
        ideal: its value under exact collapse, or at best; ``None`` if there is none.
        percent: whether it is a share in 0..1 that is shown in percent.
    """

    label: str
    meaning: str = ""
    ideal: float | None = None
    percent: bool = False


KNOWN = {
    "accuracy": Quantity("accuracy", "share of samples classified correctly", 1.0, percent=True),
    "error": Quantity("error", "share of samples classified wrongly", 0.0, percent=True),
    "class_mean_accuracy": Quantity("class-mean accuracy", "accuracy averaged over classes", 1.0, percent=True),
    "loss": Quantity("loss", "the training objective"),
    "nc1.pinv": Quantity("NC1", "within-class over between-class scatter", 0.0),
    "nc1.pinv_sum": Quantity("NC1 (sum)", "within-class over between-class scatter, times K", 0.0),
    "nc1.ratio": Quantity("NC1 (trace ratio)", "total within-class over between-class variance", 0.0),
    "cdnv": Quantity("CDNV", "variance of two classes over squared distance", 0.0),
    "vci": Quantity("VCI", "variability that the class means leave unexplained", 0.0),
    "nc2.equinorm": Quantity("NC2 norms", "spread of the lengths, relative to their mean", 0.0),
    "nc2.equiangularity": Quantity("NC2 angles", "spread of the pairwise cosines", 0.0),
    "nc2.max_angle": Quantity("NC2 simplex angle", "mean distance of the cosines from −1/(K−1)", 0.0),
    "nc2.gram": Quantity("NC2 Gram", "distance of the Gram matrix from the simplex's", 0.0),
    "nc2.etf_gap": Quantity("NC2 ETF gap", "distance to the nearest simplex ETF", 0.0),
    "nc2.etf_distance": Quantity("NC2 ETF distance", "squared distance to the nearest simplex ETF", 0.0),
    "nc2.min_separation": Quantity("NC2 separation", "smallest distance of two class directions"),
    "gnc2.log": Quantity("GNC2 energy", "hyperspherical energy of the class directions"),
    "gnc2.log_variance": Quantity("GNC2 energy, variance", "variance of the energy over pairs", 0.0),
    "nc0": Quantity("NC0", "length of the sum of the class vectors", 0.0),
    "nc1.rank": Quantity("NC1 rank", "rank of the centred class means"),
    "nc3.distance": Quantity("NC3 distance", "class means to class vectors, squared", 0.0),
    "nc3.gram": Quantity("NC3 Gram", "distance of means times classifier from the simplex's Gram", 0.0),
    "nc3.alignment": Quantity("NC3 angle", "1 minus the cosine of class mean and class vector", 0.0),
    "nc3.alignment_variance": Quantity("NC3 angle, variance", "variance of these cosines over classes", 0.0),
    "nc4.agreement": Quantity("NC4 agreement", "classifier decides like the nearest class mean", 1.0, percent=True),
    "ncc.accuracy": Quantity("nearest-mean accuracy", "accuracy of the nearest class mean", 1.0, percent=True),
    "numerical_rank": Quantity("numerical rank", "of one class's features, not centred", 1.0),
    "bias_collapse": Quantity("bias collapse", "length of the logits at the global mean", 0.0),
    "cosine_margin": Quantity("cosine margin", "cosine to the own class vector minus the largest other"),
    "etf.alignment": Quantity("ETF alignment", "cosine of tracked class means and their nearest ETF", 1.0),
    "etf.drift": Quantity("ETF drift", "how far the ETF moved in a step, relative", 0.0),
    "etf.rank": Quantity("ETF rank", "directions that the tracked class means determine"),
    "etf.smallest_singular_value": Quantity("ETF σ_min", "weakest direction of the tracked class means", 1.0),
    "ncc.error": Quantity("nearest-mean error", "error of the nearest class mean in a layer", 0.0, percent=True),
    "ncc.mismatch": Quantity(
        "nearest-mean mismatch", "nearest class mean decides unlike the network", 0.0, percent=True
    ),
    "effective_depth": Quantity("effective depth", "first layer from which the nearest class mean errs little"),
    "lock.distance": Quantity("lock distance", "relative change of a weight when it was locked", 0.0),
    "trainable_parameters": Quantity("trainable parameters", "numbers that training changes"),
    "frame.alignment": Quantity("frame alignment", "cosine of class mean and its fixed class vector", 1.0),
    "frame.cosine_error": Quantity("frame cosines", "mean error of the cosines of class means", 0.0),
    "frame.cosine_spread": Quantity("frame cosines, spread", "standard deviation of these errors", 0.0),
    "frame.duality": Quantity("frame distance", "class means to the fixed frame, not centred, squared", 0.0),
    "frame.outside.means": Quantity("means outside the frame", "share of squared norm that no logit sees", 0.0),
    "frame.outside.features": Quantity("features outside the frame", "share of squared norm that no logit sees", 0.0),
}

# Metrics of a hierarchy: an id may go on with "@k", and then with the decision rule, as in "hops@5.crm".
SEVERITY = {
    "mistake_severity": Quantity("mistake severity", "mean distance of the mistakes in the hierarchy"),
    "near_mistakes": Quantity("near mistakes", "share of samples mistaken at the smallest distance", percent=True),
    "far_mistakes": Quantity("far mistakes", "share of samples mistaken at the largest distance", 0.0, percent=True),
    "hierarchical_distance": Quantity("HD", "mean distance of the first k classes"),
    "best": Quantity("best of k", "mean distance of the nearest of the first k classes", 0.0),
    "hierarchical_precision": Quantity("hierarchical precision", "similarity of the first k, of what is possible", 1.0),
    "hierarchical_recall": Quantity("hierarchical recall", "similarity of the first k, of that of all classes"),
    "hops": Quantity("HOPS", "agreement of the ranking with the hierarchy, clipped", 1.0),
    "hops_raw": Quantity("HOPS, raw", "agreement of the ranking with the hierarchy", 1.0),
    "concordance": Quantity("concordance", "pairs of classes in the order of the hierarchy", 1.0, percent=True),
}
# Last words of an id that say of what it is measured, and what they add to its label.
PARTS = {"means": "", "classifier": ", classifier", "span": ", in its span"}
RULES = {"crm": "CRM", "tree-order": "tree order"}


def quantity(metric: str, num_classes: int | None = None) -> Quantity:
    """Describe a metric id; an unknown one is shown under its own name.

    Args:
        metric: metric id such as ``nc1.pinv``, possibly ending in ``.means``, ``.classifier`` or ``.span``.
        num_classes: K, which some ideals depend on.

    Example:
        >>> quantity("nc2.gram.classifier").label
        'NC2 Gram, classifier'
        >>> quantity("cosine_margin", num_classes=5).ideal
        1.25
    """
    stem, _, part = metric.rpartition(".")
    known = KNOWN.get(metric) or _severity(metric)
    if known is None and part in PARTS and stem in KNOWN:
        known = KNOWN[stem]
        known = replace(known, label=f"{known.label}{PARTS[part]}")
    if known is None:
        return Quantity(metric)
    if known.ideal is None and num_classes is not None and num_classes > 1:
        return replace(known, ideal=_ideal_for(num_classes).get(metric if metric in KNOWN else stem))
    return known


def is_detail(metric: str) -> bool:
    """Return whether a metric of a hierarchy has no place on a leaderboard."""
    return _severity(metric) is not None and metric not in MAIN_SEVERITY


def _severity(metric: str) -> Quantity | None:
    base, _, rule = metric.partition(".")
    name, _, k = base.partition("@")
    if name not in (SEVERITY if not rule else {**SEVERITY, "error": KNOWN["error"]}) or (rule and rule not in RULES):
        return None
    found = SEVERITY.get(name, KNOWN["error"])
    label = f"{found.label}@{k}" if k else found.label
    return replace(found, label=f"{label}, {RULES[rule]}" if rule else label)


def _ideal_for(num_classes: int) -> dict[str, float]:
    """Values at a simplex ETF of K classes: its margin, its rank and the distance of its unit vectors."""
    ratio = num_classes / (num_classes - 1)
    separation = math.sqrt(2 * ratio)
    return {
        "cosine_margin": ratio,
        "etf.rank": num_classes - 1.0,
        "nc1.rank": num_classes - 1.0,
        "nc2.min_separation": separation,
        "gnc2.log": -math.log(separation),
    }
