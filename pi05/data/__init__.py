"""From simulated demonstrations to batches that the model eats."""
