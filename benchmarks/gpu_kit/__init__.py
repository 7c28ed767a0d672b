"""The parts of `scripts/bench gpu`, one a file: each runs the project's code on one device and yields its figures."""
