"""Studies: tables of what ``tightframe compare`` wrote, and trainings that are no comparison of classifiers."""
