"""Pure functions on tensors: class moments, collapse metrics and losses."""

from tightframe.functional.collapse import (
    between_class_rank,
    bias_collapse,
    cdnv,
    gnc2,
    nc0,
    nc1,
    nc2_equiangularity,
    nc2_equinorm,
    nc2_etf_gap,
    nc2_gram,
    nc2_max_angle,
    nc2_min_separation,
    nc3_alignment,
    nc3_distance,
    nc3_gram,
    nc5,
    vci,
)
from tightframe.functional.moments import ClassMoments
from tightframe.functional.presets import PRESETS, collapse_metrics
from tightframe.functional.samples import (
    cosine_margins,
    nc4_agreement,
    ncc_accuracy,
    nearest_class_center,
    numerical_rank,
)

__all__ = [
    "PRESETS",
    "ClassMoments",
    "between_class_rank",
    "bias_collapse",
    "cdnv",
    "collapse_metrics",
    "cosine_margins",
    "gnc2",
    "nc0",
    "nc1",
    "nc2_equiangularity",
    "nc2_equinorm",
    "nc2_etf_gap",
    "nc2_gram",
    "nc2_max_angle",
    "nc2_min_separation",
    "nc3_alignment",
    "nc3_distance",
    "nc3_gram",
    "nc4_agreement",
    "nc5",
    "ncc_accuracy",
    "nearest_class_center",
    "numerical_rank",
    "vci",
]
