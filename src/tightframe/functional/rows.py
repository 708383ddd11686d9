"""The table of all metrics: names, needs, functions and ideals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tightframe.functional import collapse as c
from tightframe.functional import geometry as g
from tightframe.functional import samples as s
from tightframe.functional.frame_collapse import frame_metrics


@dataclass(frozen=True)
class Metric:
    """One row: everything that the package knows about a metric.

    Args:
        id: Id of the metric. Braces hold alternatives, as in ``nc2.gram.{means,classifier}``; ``{k}`` is any number.
        needs: Inputs of the function: ``means``, ``scatter``, ``weight``, ``bias`` (there with every weight, perhaps
            as None), ``samples``, ``logits``, ``frame``, ``distances``.
        label: A few words for a reader.
        meaning: One line for a reader.
        ideal: Value at exact collapse, or at best; a function of K where it depends on K; None if there is none.
        source: Publication of the formula.
        function: Function that computes it; None where a training logs the number. If it needs ``samples``, it takes a
            :class:`tightframe.functional.samples.Look` and returns one value per sample ``(B,)``. Otherwise it takes
            the ones it needs of moments, weight, bias and frame, in this order, and returns a 0-d tensor, or a mapping
            from id to tensor. ``weight`` holds the rows of the present classes, as
            :class:`tightframe.functional.geometry.Vectors`.
        presets: Presets that it belongs to, of ``default`` (at the classifier's input) and ``layer`` (at other layers).
        percent: Whether it is a share in 0..1 that is shown in percent.
        formula: Formula in plain text.
    """

    id: str
    needs: frozenset[str]
    label: str
    meaning: str = ""
    ideal: float | Callable[[int], float] | None = None
    source: str = ""
    function: Callable[..., Any] | None = None
    presets: tuple[str, ...] = ()
    percent: bool = False
    formula: str = ""


def _row(id: str, needs: str, label: str, meaning: str, formula: str = "", source: str = "", **rest: Any) -> Metric:
    return Metric(id, frozenset(needs.split()), label, meaning, formula=formula, source=source, **rest)


def _of_samples(id: str, needs: str, label: str, meaning: str, formula: str, source: str, **rest: Any) -> Metric:
    return _row(id, f"samples {needs}", label, meaning, formula, source, **rest)


def _of_frame(id: str, label: str, meaning: str, formula: str, needs: str = "", **rest: Any) -> Metric:
    rest = {"function": frame_metrics, "ideal": 0.0, "presets": AT_CLASSIFIER, **rest}
    return _row(id, f"means frame {needs}", label, meaning, formula, **rest)


# Ideals that depend on K; docs/metrics.md prints the docstrings.
def _ratio(num_classes: int) -> float:
    """K/(K − 1)."""
    return num_classes / (num_classes - 1)


def _rank(num_classes: int) -> float:
    """K − 1."""
    return num_classes - 1.0


def _separation(num_classes: int) -> float:
    """√(2K/(K − 1))."""
    return math.sqrt(2 * num_classes / (num_classes - 1))


def _energy(num_classes: int) -> float:
    """−½ log(2K/(K − 1))."""
    return -math.log(_separation(num_classes))


EVERYWHERE, AT_CLASSIFIER, IN_LAYERS = ("default", "layer"), ("default",), ("layer",)

BOTH = ".{means,classifier}"  # the centred class means, or the rows of the classifier
SPAN = "{,.span}"  # the class means, or their projections on the span of the frame
RULE = "{,.crm,.tree-order}"  # the rule that ranks the classes: their logits, or one of functional.decisions
SUFFIXES = {
    "means": "",
    "classifier": ", classifier",
    "span": ", in its span",
    "crm": ", CRM",
    "tree-order": ", tree order",
}

PAPYAN, ZHU, TIRER = "Papyan, Han & Donoho 2020", "Zhu et al. 2021", "Tirer, Huang & Niles-Weed 2023"
GALANTI, LIU, WU = "Galanti, György & Hutter 2022", "Liu et al. 2023", "Wu & Papyan 2024"
MARKOU = "Markou, Ajanthan & Gould 2024"

# fmt: off
METRICS: tuple[Metric, ...] = (
    # from the moments of one layer, perhaps with the classifier
    _row("nc1.ratio", "means", "NC1 (trace ratio)", "total within-class over between-class variance",
         "tr Σ_W / tr Σ_B", TIRER, function=partial(c.nc1, variant="ratio"), ideal=0.0, presets=EVERYWHERE),
    _row("nc1.rank", "means", "NC1 rank", "rank of the centred class means",
         "rank of A that the pseudo-inverse used; below K − 1 some means have merged",
         function=c.between_class_rank, ideal=_rank, presets=EVERYWHERE),
    _row("cdnv", "means", "CDNV", "variance of two classes over squared distance",
         "mean over pairs of (v_i + v_j) / (2‖μ_i − μ_j‖²)", GALANTI, function=c.cdnv, ideal=0.0,
         presets=EVERYWHERE),
    _row(f"nc2.equinorm{BOTH}", "means", "NC2 norms", "spread of the lengths, relative to their mean",
         "std/mean of the norms; sample std", PAPYAN, function=g.nc2_equinorm, ideal=0.0, presets=EVERYWHERE),
    _row(f"nc2.equiangularity{BOTH}", "means", "NC2 angles", "spread of the pairwise cosines",
         "std of the cosines over pairs; population std", PAPYAN, function=g.nc2_equiangularity, ideal=0.0,
         presets=EVERYWHERE),
    _row(f"nc2.max_angle{BOTH}", "means", "NC2 simplex angle", "mean distance of the cosines from −1/(K−1)",
         "mean of |cos + 1/(K − 1)|", PAPYAN, function=g.nc2_max_angle, ideal=0.0, presets=EVERYWHERE),
    _row(f"nc2.gram{BOTH}", "means", "NC2 Gram", "distance of the Gram matrix from the simplex's",
         "‖G/‖G‖_F − (I − 11ᵀ/K)/√(K − 1)‖_F", f"{ZHU} (classifier), Kothapalli 2023 (means)",
         function=g.nc2_gram, ideal=0.0, presets=EVERYWHERE),
    _row(f"nc2.etf_gap{BOTH}", "means", "NC2 ETF gap", "distance to the nearest simplex ETF",
         "relative distance to the nearest simplex ETF; nan if d < K − 1", "orthogonal Procrustes",
         function=g.nc2_etf_gap, ideal=0.0, presets=EVERYWHERE),
    _row(f"nc2.etf_distance{BOTH}", "means", "NC2 ETF distance", "squared distance to the nearest simplex ETF",
         "squared distance to the nearest simplex ETF, each of Frobenius norm 1", MARKOU,
         function=partial(g.nc2_etf_gap, variant="squared"), ideal=0.0),
    _row(f"nc2.min_separation{BOTH}", "means", "NC2 separation", "smallest distance of two class directions",
         "least distance of two directions", LIU, function=g.nc2_min_separation, ideal=_separation, presets=EVERYWHERE),
    _row(f"gnc2.log{BOTH}", "means", "GNC2 energy", "hyperspherical energy of the class directions",
         "mean over pairs of log(1/distance) of directions", LIU, function=g.gnc2, ideal=_energy, presets=EVERYWHERE),
    _row(f"gnc2.log_variance{BOTH}", "means", "GNC2 energy, variance", "variance of the energy over pairs",
         "variance over pairs of log(1/distance)", WU, function=partial(g.gnc2, statistic="variance"), ideal=0.0),
    _row(f"gnc2.distance{BOTH}", "means", "GNC2 distance", "mean distance of two class directions",
         "mean over pairs of the distance of directions", WU,
         function=partial(g.gnc2, kernel="distance"), ideal=_separation),
    _row(f"gnc2.distance_variance{BOTH}", "means", "GNC2 distance, variance", "variance of the distance over pairs",
         "variance over pairs of the distance of directions", WU,
         function=partial(g.gnc2, kernel="distance", statistic="variance"), ideal=0.0),
    _row("nc1.pinv", "means scatter", "NC1", "within-class over between-class scatter", "tr(Σ_W Σ_B⁺)/K",
         f"{PAPYAN}; {ZHU}", function=c.nc1, ideal=0.0, presets=EVERYWHERE),
    _row("nc1.pinv_sum", "means scatter", "NC1 (sum)", "within-class over between-class scatter, times K",
         "tr(Σ_W Σ_B⁺)", "notebook of Papyan et al.", function=partial(c.nc1, variant="pinv_sum"), ideal=0.0),
    _row("vci", "means scatter", "VCI", "variability that the class means do not explain",
         "1 − tr(Σ_T⁺ Σ_B)/min(d, K − 1)", "Xu & Liu 2023", function=c.vci, ideal=0.0, presets=EVERYWHERE),
    _row("nc3.distance", "means weight", "NC3 distance", "class means to class vectors, squared",
         "‖W/‖W‖_F − A/‖A‖_F‖_F²", PAPYAN, function=c.nc3_distance, ideal=0.0, presets=AT_CLASSIFIER),
    _row("nc3.gram", "means weight", "NC3 Gram", "distance of means times classifier from the simplex's Gram",
         "‖WAᵀ/‖WAᵀ‖_F − (I − 11ᵀ/K)/√(K − 1)‖_F", ZHU, function=c.nc3_gram, ideal=0.0,
         presets=AT_CLASSIFIER),
    _row("nc3.alignment", "means weight", "NC3 angle", "1 minus the cosine of class mean and class vector",
         "1 − mean cos(w_k, a_k)", "GNC3 of Jiang et al. 2024", function=c.nc3_alignment, ideal=0.0,
         presets=AT_CLASSIFIER),
    _row("nc3.alignment_variance", "means weight", "NC3 angle, variance", "variance of these cosines over classes",
         "variance of cos(w_k, a_k)", function=partial(c.nc3_alignment, statistic="variance"), ideal=0.0),
    _row("nc3.dot_variance", "means weight", "NC3 products, variance",
         "variance over classes of the product of class mean and class vector", "variance of w_k · a_k",
         f"uniform duality of {WU}", function=partial(c.nc3_alignment, statistic="dot_variance"), ideal=0.0),
    _row("nc0", "weight", "NC0", "length of the sum of the class vectors", "‖Wᵀ1‖", function=g.nc0, ideal=0.0,
         presets=AT_CLASSIFIER),
    _row("bias_collapse", "means weight bias", "bias collapse", "length of the logits at the global mean",
         "‖Wμ_G + b‖; some code calls it NC4", ZHU, function=c.bias_collapse, ideal=0.0, presets=AT_CLASSIFIER),
    _row("nc5", "means", "NC5", "cosine of class means and the mean of outliers", "mean |cos(μ_k, μ_outliers)|",
         "Ben Ammar et al. 2024", ideal=0.0),
    # from fixed class vectors
    _of_frame(f"frame.alignment{SPAN}", "frame alignment", "cosine of class mean and its fixed class vector",
              "mean cos(μ_k, w_k)", ideal=1.0),
    _of_frame(f"frame.cosine_error{SPAN}", "frame cosines", "mean error of the cosines of class means",
              "mean over pairs of |cos(μ_i, μ_j) − cos(w_i, w_j)|"),
    _of_frame(f"frame.cosine_spread{SPAN}", "frame cosines, spread", "standard deviation of these errors",
              "std over pairs of cos(μ_i, μ_j) − cos(w_i, w_j)"),
    _of_frame(f"frame.duality{SPAN}", "frame distance", "class means to the fixed frame, not centred, squared",
              "‖W/‖W‖_F − M/‖M‖_F‖_F²"),
    _of_frame("frame.outside.means", "means outside the frame", "share of squared norm that no logit sees",
              "Σ_k ‖μ_k − Pμ_k‖² / Σ_k ‖μ_k‖²"),
    _of_frame("frame.outside.features", "features outside the frame", "share of squared norm that no logit sees",
              "the same of all samples", "scatter"),
    # from a second look at the samples
    _of_samples("ncc.accuracy", "means", "nearest-mean accuracy", "accuracy of the nearest class mean",
                "share of samples nearest to the mean of their class", GALANTI,
                function=partial(s.agreement, one="nearest", other="labels"), ideal=1.0, percent=True,
                presets=AT_CLASSIFIER),
    _of_samples("ncc.error", "means", "nearest-mean error", "error of the nearest class mean in a layer",
                "share of samples whose nearest class mean is another class's", GALANTI,
                function=partial(s.agreement, one="nearest", other="labels", wanted=False), ideal=0.0, percent=True,
                presets=IN_LAYERS),
    _of_samples("nc4.agreement", "means logits", "NC4 agreement", "agreement of classifier and nearest class mean",
                "share of samples on which network and nearest mean agree, bias included", PAPYAN,
                function=partial(s.agreement, one="nearest", other="decision"), ideal=1.0, percent=True,
                presets=AT_CLASSIFIER),
    _of_samples("nc4.agreement_without_bias", "means weight", "NC4 agreement without bias",
                "agreement of largest product and nearest class mean",
                "share of samples on which argmax Wh and nearest mean agree", WU,
                function=partial(s.agreement, one="nearest", other="decision_without_bias"), ideal=1.0, percent=True),
    _of_samples("ncc.mismatch", "means logits", "nearest-mean mismatch",
                "disagreement of network and nearest class mean",
                "share of samples on which the network decides otherwise than the nearest mean",
                "Ben-Shaul & Dekel 2022",
                function=partial(s.agreement, one="nearest", other="decision", wanted=False), ideal=0.0, percent=True),
    _of_samples("cosine_margin", "means weight", "cosine margin",
                "cosine to the own class vector minus the largest other",
                "mean of cos(h − μ_G, w_y − w̄) − max_j cos(h − μ_G, w_j − w̄)", MARKOU,
                function=s.margin, ideal=_ratio, presets=AT_CLASSIFIER),
    _of_samples("accuracy", "logits", "accuracy", "share of samples classified correctly",
                "share of samples with the largest logit at their label", "",
                function=partial(s.agreement, one="decision", other="labels"), ideal=1.0, percent=True,
                presets=AT_CLASSIFIER),
    _of_samples("cross_entropy", "logits", "cross-entropy", "minus the log of the probability of the label",
                "mean of −log softmax(z)_y", "", function=s.entropy, presets=AT_CLASSIFIER),
    _of_samples("numerical_rank", "", "numerical rank", "rank of one class's features, not centred",
                "mean over classes of (‖H_k‖_* / ‖H_k‖_F)², uncentred", MARKOU, ideal=1.0),
    # from a hierarchy of classes
    *(
        _row(f"{name}{RULE}", "samples logits distances", label, meaning, **rest)
        for name, label, meaning, rest in (
            ("mistake_severity", "mistake severity", "mean distance of the mistakes in the hierarchy", {}),
            ("near_mistakes", "near mistakes", "share of samples mistaken at the smallest distance",
             {"percent": True}),
            ("far_mistakes", "far mistakes", "share of samples mistaken at the largest distance",
             {"percent": True, "ideal": 0.0}),
            ("hierarchical_distance@{k}", "HD", "mean distance of the first k classes", {}),
            ("best@{k}", "best of k", "mean distance of the nearest of the first k classes", {"ideal": 0.0}),
            ("hierarchical_precision@{k}", "hierarchical precision", "similarity of the first k, of what is possible",
             {"ideal": 1.0}),
            ("hierarchical_recall@{k}", "hierarchical recall", "similarity of the first k, of that of all classes",
             {}),
            ("hops", "HOPS", "agreement of the ranking with the hierarchy, clipped", {"ideal": 1.0}),
            ("hops@{k}", "HOPS", "agreement of the first k with the hierarchy, clipped", {"ideal": 1.0}),
            ("hops_raw", "HOPS, raw", "agreement of the ranking with the hierarchy", {"ideal": 1.0}),
            ("hops_raw@{k}", "HOPS, raw", "agreement of the first k with the hierarchy", {"ideal": 1.0}),
            ("concordance", "concordance", "pairs of classes in the order of the hierarchy",
             {"percent": True, "ideal": 1.0}),
        )
    ),
    _row("error.{crm,tree-order}", "samples logits distances", "error", "share of samples decided wrongly",
         ideal=0.0, percent=True),
    # what a training logs
    _row("error", "", "error", "share of samples classified wrongly", ideal=0.0, percent=True),
    _row("class_mean_accuracy", "", "class-mean accuracy", "accuracy averaged over classes", ideal=1.0, percent=True),
    _row("loss", "", "loss", "the training objective"),
    _row("etf.alignment", "", "ETF alignment", "cosine of tracked class means and their nearest ETF", ideal=1.0),
    _row("etf.drift", "", "ETF drift", "relative movement of the ETF in a step", ideal=0.0),
    _row("etf.rank", "", "ETF rank", "directions that the tracked class means determine", ideal=_rank),
    _row("etf.smallest_singular_value", "", "ETF σ_min", "weakest direction of the tracked class means", ideal=1.0),
    _row("effective_depth", "", "effective depth", "first layer from which nearest class means err little"),
    _row("lock.distance", "", "lock distance", "relative change of a weight when it was locked", ideal=0.0),
    _row("trainable_parameters", "", "trainable parameters", "numbers that training changes"),
)
# fmt: on
