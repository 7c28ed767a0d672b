"""What is wanted: presets, settings and a user's words -> a RunSpec, and its job.json."""
