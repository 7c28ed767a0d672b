"""What NVIDIA's driver says of the GPUs of this machine: memory, utilisation, power, what slows them down, ECC errors.

    python -m pi05.nvml        prints them as JSON; [] where there is no driver or no nvidia-ml-py

The library (nvidia-ml-py, whose module is `pynvml`) comes with the extra `train` and is loaded when it is asked for. A
value that a GPU does not know is None.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pi05.metrics import METRICS

_SLOWED = {0x08: "hardware", 0x20: "heat (driver)", 0x40: "heat", 0x80: "power supply"}
"""Reasons for low clocks that mean trouble, by NVML's bits; idleness and the power limit of a busy GPU mean none."""


@dataclass(frozen=True)
class Gpu:
    """One GPU now.

    Attributes:
        index: As nvidia-smi counts.
        name: What its driver calls it.
        used_gb, total_gb: Of its memory, by all processes.
        utilisation: Share of the last second or less in which a kernel ran.
        watts: Power.
        slowed: What slows it down beyond what is normal; empty: nothing.
        ecc_errors: Uncorrected memory errors since the driver was loaded.
    """

    index: int
    name: str
    used_gb: float | None = None
    total_gb: float | None = None
    utilisation: float | None = None
    watts: float | None = None
    slowed: tuple[str, ...] = ()
    ecc_errors: int | None = None

    @property
    def trouble(self) -> str:
        """What is wrong with it, in words; empty: nothing that it knows of."""
        parts = [f"is slowed down by {' and '.join(self.slowed)}"] if self.slowed else []
        parts += [f"has {self.ecc_errors} uncorrected memory errors"] if self.ecc_errors else []
        return f"GPU {self.index} ({self.name}) {' and '.join(parts)}" if parts else ""

    def short(self) -> dict[str, object]:
        """Return what an event says of it."""
        numbers = {"gb": self.used_gb, "use": self.utilisation, "watts": self.watts, "ecc": self.ecc_errors}
        told = {name: round(value, 2) for name, value in numbers.items() if value is not None}
        return {"gpu": self.index, **told, **({"slowed": ", ".join(self.slowed)} if self.slowed else {})}


def driver() -> Any:
    """Return the library, connected to the driver; None where one of them is missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def read(nvml: Any) -> list[Gpu]:
    """Return the GPUs that a driver has; none without a driver."""
    return [] if nvml is None else [_one(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]


def metrics(gpus: Sequence[Gpu]) -> dict[str, float]:
    """Return what GPUs say together, by the names of pi05.metrics; nothing without any."""
    use = [gpu.utilisation for gpu in gpus if gpu.utilisation is not None]
    watts = [gpu.watts for gpu in gpus if gpu.watts is not None]
    errors = [gpu.ecc_errors for gpu in gpus if gpu.ecc_errors is not None]
    found = {
        "gpu_utilisation": sum(use) / len(use) if use else None,
        "gpu_watts": sum(watts) / len(watts) if watts else None,
        "gpus_slowed": float(sum(bool(gpu.slowed) for gpu in gpus)) if gpus else None,
        "gpu_ecc_errors": float(sum(errors)) if errors else None,
    }
    assert found.keys() <= METRICS.keys()
    return {name: value for name, value in found.items() if value is not None}


def summary(gpus: Sequence[Gpu]) -> str:
    """Return `0.5 of 85.0 GB in use, 71 W, 0 uncorrected memory errors`, the largest of each number."""
    parts: list[str] = []
    used = [(gpu.used_gb, gpu.total_gb) for gpu in gpus if gpu.used_gb is not None and gpu.total_gb is not None]
    if used:
        most, total = max(used)
        parts.append(f"{most:.1f} of {total:.1f} GB in use")
    if watts := [gpu.watts for gpu in gpus if gpu.watts is not None]:
        parts.append(f"{max(watts):.0f} W")
    if errors := [gpu.ecc_errors for gpu in gpus if gpu.ecc_errors is not None]:
        parts.append(f"{max(errors)} uncorrected memory errors")
    return ", ".join(parts)


class Watch:
    """Looks at GPUs again and again, and says each trouble once.

    Args:
        nvml: Of `driver`.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._known: set[str] = set()

    def look(self) -> tuple[list[Gpu], list[str]]:
        """Return the GPUs as they are, and what has gone wrong with them since the last look."""
        gpus = read(self._nvml)
        troubles = {gpu.trouble for gpu in gpus} - {""}
        new, self._known = sorted(troubles - self._known), troubles
        return gpus, new


def _one(nvml: Any, index: int) -> Gpu:
    gpu = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(question: Callable[..., Any], *arguments: object) -> Any:
        """Return the answer, or None for a GPU that has none."""
        try:
            return question(gpu, *arguments)
        except nvml.NVMLError:
            return None

    memory, use = ask(nvml.nvmlDeviceGetMemoryInfo), ask(nvml.nvmlDeviceGetUtilizationRates)
    errors = ask(nvml.nvmlDeviceGetTotalEccErrors, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    milliwatts, reasons = ask(nvml.nvmlDeviceGetPowerUsage), ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
    return Gpu(
        index=index,
        name=str(ask(nvml.nvmlDeviceGetName) or "unknown"),
        used_gb=memory and memory.used / 1e9,
        total_gb=memory and memory.total / 1e9,
        utilisation=use and use.gpu / 100,
        watts=milliwatts and milliwatts / 1e3,
        slowed=tuple(words for bit, words in _SLOWED.items() if (reasons or 0) & bit),
        ecc_errors=errors,
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps([asdict(gpu) for gpu in read(driver())]) + "\n")
