"""Runs as Helm releases of a Kubernetes cluster."""
