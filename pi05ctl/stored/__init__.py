"""What exists in storage: datasets, weights, checkpoints, results of evaluations."""
