"""Reports: from records and snapshots on disk to tables, figures and one self-contained page."""

from tightframe.report.build import build_report
from tightframe.report.tables import (
    Leaderboard,
    leaderboard,
    print_leaderboard,
    write_leaderboard_csv,
    write_records_csv,
)

__all__ = [
    "Leaderboard",
    "build_report",
    "leaderboard",
    "print_leaderboard",
    "write_leaderboard_csv",
    "write_records_csv",
]
