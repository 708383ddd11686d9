"""Which metrics the report shows first."""

from __future__ import annotations

from tightframe.functional.registry import describe

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


def is_detail(metric: str) -> bool:
    """Return whether a metric of a hierarchy has no place on a leaderboard."""
    return "distances" in describe(metric).needs and metric not in MAIN_SEVERITY
