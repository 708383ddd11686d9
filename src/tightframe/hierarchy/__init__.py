"""Hierarchies of classes: trees and other graphs, read from many forms, and the distances of classes in them."""

from tightframe.hierarchy.distances import check_distances
from tightframe.hierarchy.graph import graph_distances
from tightframe.hierarchy.tree import Tree

__all__ = ["Tree", "check_distances", "graph_distances"]
