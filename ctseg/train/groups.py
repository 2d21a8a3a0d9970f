"""Which cases belong together, as the scans of one patient do, and the folds that keep them together."""

FOLDS = 5
"""Of nnU-Net's cross-validation."""


def too_few(cases: int) -> str:
    """Return what so few cases mean, and what can be done."""
    return (
        f"{cases} cases are fewer than the five folds of nnU-Net's cross-validation need: add cases, train on all of "
        "them (the fold `full`), or write folds of your own into splits_final.json"
    )
