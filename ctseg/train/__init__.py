"""From a dataset to the best configuration: dataset, planner, trainers, training, cross-validation."""
