"""The training loop and what it needs: sharding, optimizer, step, checkpoints."""
