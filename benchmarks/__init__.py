"""Benchmarks: what is measured, beside what a user would take instead, in one run."""
