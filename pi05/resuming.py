"""What a training may go on with otherwise than it began: the one list, for who asks for it and for who does it.

Knows the sections of a job and nothing of checkpoints or runs.
"""

from collections.abc import Mapping
from typing import Any, cast

from pi05.config import ComputeConfig, Section

RESULT_FREE = frozenset(
    {
        *("train.log_every", "train.save_every", "train.save_state_every", "train.keep_every"),
        *("train.held_out_every", "train.profile"),
        *("train.patience", "train.fsdp_devices", "train.fsdp_min_bytes"),
        *(f"compute.{name}" for name in ComputeConfig.model_fields if name != "dtype"),
    }
)
"""Settings that a training's numbers do not depend on, but for rounding."""

STEERING = frozenset(
    {
        *("train.steps", "train.seed", "compute.dtype"),
        *(f"train.optimizer.{name}" for name in ("peak_lr", "end_lr", "warmup_steps", "decay_steps")),
        *(f"train.optimizer.{name}" for name in ("weight_decay", "clip_norm")),
    }
)
"""Settings that a training may go on with otherwise: its checkpoints fit, and only the steps to come are others."""


def differences(before: Mapping[str, Section], after: Mapping[str, Section]) -> dict[str, tuple[Any, Any]]:
    """Return the paths (`train.optimizer.peak_lr`) in which sections differ, each with both values."""
    one, other = _values(_told(before)), _values(_told(after))
    return {path: (one.get(path), value) for path, value in other.items() if one.get(path) != value}


def _told(sections: Mapping[str, Section]) -> dict[str, Any]:
    """Return sections as JSON has them; steps of decay that are not told are those of the training."""
    told: dict[str, Any] = {name: section.model_dump(mode="json") for name, section in sections.items()}
    if "train" in told:
        told["train"]["optimizer"]["decay_steps"] = told["train"]["optimizer"]["decay_steps"] or told["train"]["steps"]
    return told


def _values(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return every value of nested sections by its path."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        path = f"{prefix}{name}"
        inside = isinstance(value, dict)
        found |= _values(cast("Mapping[str, Any]", value), f"{path}.") if inside else {path: value}
    return found
