"""Job mains: `python -m pi05.jobs.<kind> job.json`."""
