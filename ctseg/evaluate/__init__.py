"""Label maps against references, and pages on which people look at runs, data sets and trainings."""
