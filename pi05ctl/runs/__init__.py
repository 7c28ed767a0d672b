"""What is known of runs: records, processes, Kubernetes' objects -> status; and what a target can do with them."""
