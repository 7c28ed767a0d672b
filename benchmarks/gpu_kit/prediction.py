"""A compiled program and the device it is for -> what it should take there, by the plan's reader."""

from typing import Any

from pi05.chips import CHIPS, Chip
from pi05.plan import program


def peak(device: Any) -> float | None:
    """Return the bfloat16 FLOP/s of a device of JAX; None when it is not known."""
    chip = _chip(device)
    return chip.peak if chip else None


def milliseconds(text: str, device: Any) -> float | None:
    """Return the roofline of a program's kernels, a lower bound; None for a device that is not known."""
    chip = _chip(device)
    return program.read(text, chip, gpus=1).kernel_seconds * 1e3 if chip else None


def _chip(device: Any) -> Chip | None:
    return next((chip for chip in CHIPS.values() if device.device_kind.startswith(chip.title)), None)
