"""Where runs run: this machine (local.py).

A target starts, signals and observes; what state a run is in is decided elsewhere (status.py). Each offers the same
functions: submit, load, cancel, snapshot, runs, log. A cluster will be the second one.
"""
