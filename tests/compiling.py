"""A training that counts what it asks XLA for: `python -m tests.compiling job.json`; the last line has the counts."""

import json
import sys
from collections import Counter

import jax

from pi05.config import TrainJob
from pi05.jobs import runtime
from pi05.jobs.train import train

EVENTS = {"/jax/compilation_cache/compile_requests_use_cache": "asked", "/jax/compilation_cache/cache_hits": "kept"}
"""Programs that were needed, and those that were there."""


if __name__ == "__main__":
    counts: Counter[str] = Counter()
    jax.monitoring.register_event_listener(lambda event, **_: counts.update([EVENTS.get(event, "other")]))
    code = runtime.run(TrainJob, train, sys.argv[1:])
    print(json.dumps({name: counts[name] for name in EVENTS.values()}))
    sys.exit(code)
