"""Closed-loop evaluation of a policy in simulation."""
