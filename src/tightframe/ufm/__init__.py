"""Unconstrained-feature models: problems, closed forms, solvers and certificates."""

from tightframe.ufm.certificate import Certificate
from tightframe.ufm.certify import certify
from tightframe.ufm.cross_entropy import CrossEntropyUFM
from tightframe.ufm.deep import DeepUFM
from tightframe.ufm.heads import certify_head
from tightframe.ufm.layer_peeled import LayerPeeled, minority_collapse_threshold
from tightframe.ufm.margin import ULPM, MaxMargin
from tightframe.ufm.mean_squared import MeanSquaredUFM
from tightframe.ufm.minority import minority_collapse
from tightframe.ufm.network import certify_network
from tightframe.ufm.problem import Problem
from tightframe.ufm.relu import ReLUImbalanced
from tightframe.ufm.solution import Solution
from tightframe.ufm.solve import closed_form, solve

__all__ = [
    "ULPM",
    "Certificate",
    "CrossEntropyUFM",
    "DeepUFM",
    "LayerPeeled",
    "MaxMargin",
    "MeanSquaredUFM",
    "Problem",
    "ReLUImbalanced",
    "Solution",
    "certify",
    "certify_head",
    "certify_network",
    "closed_form",
    "minority_collapse",
    "minority_collapse_threshold",
    "solve",
]
