"""What `auto` in ComputeConfig means on a device, which may be one that is described and not there."""

from typing import Any

from pi05.config import ComputeConfig, ModelConfig

_WIDEST = {(9, 0): 256, (8, 0): 128}
"""Largest head that cuDNN 9.5 and newer takes, forward and backward, from a compute capability on."""


def resolve(compute: ComputeConfig, model: ModelConfig, device: Any) -> ComputeConfig:
    """Return the settings with `auto` decided for a device of JAX; on a CPU what is left of it depends on the depth."""
    attention, layers = compute.attention, compute.layers
    if attention == "auto":
        attention = "cudnn" if _has_cudnn(compute, model, device) else "xla"
    if layers == "auto" and device.platform == "gpu":
        layers = "unrolled"
    return compute.model_copy(update={"attention": attention, "layers": layers})


def xla_options(compute: ComputeConfig, device: Any) -> dict[str, str | bool]:
    """Return the options of XLA that are for a device of this kind, as JAX takes them."""
    foreign = "xla_cpu_" if device.platform == "gpu" else "xla_gpu_"
    pairs = [option.split("=", 1) for option in compute.xla_options if not option.startswith(foreign)]
    return {name: {"true": True, "false": False}.get(value, value) for name, value in pairs}


def _has_cudnn(compute: ComputeConfig, model: ModelConfig, device: Any) -> bool:
    """Return whether cuDNN's attention takes all heads of a model on a device."""
    capability = str(getattr(device, "compute_capability", ""))
    if device.platform != "gpu" or compute.dtype != "bfloat16" or "." not in capability:
        return False
    found = tuple(int(part) for part in capability.split("."))
    widest = max((size for needed, size in _WIDEST.items() if found >= needed), default=0)
    return max(model.vlm.head_dim, model.vit.width // model.vit.num_heads) <= widest
