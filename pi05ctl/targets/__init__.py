"""Where runs run: this machine (local.py) or a Kubernetes cluster (cluster.py), behind one interface (target.py).

A target starts, signals and observes; what state a run is in is decided elsewhere (status.py).
"""
