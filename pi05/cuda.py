"""What NVIDIA's driver says of itself here, in words: whether it is there, starts, and how many GPUs it sees.

Knows the driver's library alone, and no JAX.
"""

import ctypes
import os
from collections.abc import Callable
from typing import Any

_LIBRARY = "libcuda.so.1"
_MEANINGS = {
    100: ": no GPU is in this container, the node's device plugin gave it none",
    802: ": the node's fabric manager, without which its NVSwitches do nothing, is not running",
    803: ": the library is of another version than the kernel's module; a CUDA compatibility package may be in the way",
}
"""Codes of cuInit (CUDA driver API, CUresult) that clusters meet."""


def driver(load: Callable[[str], Any] = ctypes.CDLL) -> str:
    """Return what is known of the driver.

    Args:
        load: Opens a library as the loader finds it; raises OSError when it does not.
    """
    try:
        library = load(_LIBRARY)
    except OSError as error:
        return (
            f"NVIDIA's driver is not here ({error}; LD_LIBRARY_PATH={os.environ.get('LD_LIBRARY_PATH', '')} and the "
            "loader's own folders were searched): the node has none, or its container runtime does not hand it on"
        )
    if code := library.cuInit(0):
        return f"NVIDIA's driver is here and cuInit fails with {code}{_MEANINGS.get(code, '')}"
    count, number = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    library.cuDriverGetVersion(ctypes.byref(number))
    major, minor = divmod(number.value, 1000)
    return f"NVIDIA's driver is here, for CUDA {major}.{minor // 10}, and sees {count.value} GPUs"
