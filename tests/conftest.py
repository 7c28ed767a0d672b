"""What every group of tests shares: nothing is fetched from the network, nothing runs on a GPU by accident."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
