"""Pages on which people look: of runs here, of data sets and trainings by those who have them."""
