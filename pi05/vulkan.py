"""Which Vulkan driver of this machine draws on the CPU: asks the Vulkan loader itself, through ctypes.

SAPIEN names the device (`llvmpipe`) but not the driver's version, which decides the pixels. Knows no simulator.
"""

import ctypes
import functools
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_APPLICATION_INFO, _INSTANCE_CREATE_INFO = 0, 1
_DRIVER_PROPERTIES, _PROPERTIES_2 = 1000196000, 1000059001
_VERSION_1_2 = (1 << 22) | (2 << 12)
_CPU = 4
"""VK_PHYSICAL_DEVICE_TYPE_CPU."""
_LAVAPIPE = 13
"""VK_DRIVER_ID_MESA_LLVMPIPE; Mesa calls its Vulkan driver lavapipe and the device llvmpipe."""


@dataclass(frozen=True)
class Driver:
    """A Vulkan driver: its name and its version, (25, 0, 7)."""

    name: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {'.'.join(map(str, self.version))}"


class _ApplicationInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("application", ctypes.c_char_p),
        ("application_version", ctypes.c_uint32),
        ("engine", ctypes.c_char_p),
        ("engine_version", ctypes.c_uint32),
        ("api_version", ctypes.c_uint32),
    ]


class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.POINTER(_ApplicationInfo)),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    ]


class _DriverProperties(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("driver", ctypes.c_int),
        ("name", ctypes.c_char * 256),
        ("info", ctypes.c_char * 256),
        ("conformance", ctypes.c_uint8 * 4),
    ]


class _Properties2(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("api_version", ctypes.c_uint32),
        ("driver_version", ctypes.c_uint32),
        ("vendor", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("device_type", ctypes.c_int),
        ("rest", ctypes.c_uint8 * 1024),  # name, limits and more, 804 bytes
    ]


@functools.cache
def cpu_driver() -> Driver | None:
    """Return the driver that draws on the CPU, or None when this machine has none.

    Asked in a process of its own: a loader keeps what it has seen, and a broken driver would take this process along.
    """
    asked = subprocess.run([sys.executable, "-I", __file__], capture_output=True, text=True, timeout=60, check=False)
    name, _, version = asked.stdout.strip().rpartition(" ")
    return Driver(name, tuple(int(part) for part in version.split("."))) if name else None


def find() -> Driver | None:
    """Return the driver that draws on the CPU, asked in this process."""
    vulkan = _loader()
    instance = _instance(vulkan) if vulkan else None
    if vulkan is None or instance is None:
        return None
    try:
        drivers = [driver for device in _devices(vulkan, instance) if (driver := _cpu_driver(vulkan, device))]
    finally:
        vulkan.vkDestroyInstance(instance, None)
    return drivers[0] if drivers else None


def _loader() -> ctypes.CDLL | None:
    """Return the Vulkan loader: the system's, or the one in SAPIEN's wheel."""
    bundled = (str(path) for folder in sys.path for path in Path(folder).glob("sapien/vulkan_library/libvulkan.so.1*"))
    for name in ("libvulkan.so.1", *bundled):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _instance(vulkan: ctypes.CDLL) -> ctypes.c_void_p | None:
    application = _ApplicationInfo(type=_APPLICATION_INFO, api_version=_VERSION_1_2)
    asked = _InstanceCreateInfo(type=_INSTANCE_CREATE_INFO, application=ctypes.pointer(application))
    instance = ctypes.c_void_p()
    return None if vulkan.vkCreateInstance(ctypes.byref(asked), None, ctypes.byref(instance)) else instance


def _devices(vulkan: ctypes.CDLL, instance: ctypes.c_void_p) -> list[ctypes.c_void_p]:
    count = ctypes.c_uint32()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    devices = (ctypes.c_void_p * count.value)()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
    return [ctypes.c_void_p(device) for device in devices]


def _cpu_driver(vulkan: ctypes.CDLL, device: ctypes.c_void_p) -> Driver | None:
    """Return the driver of a device, or None when that is no CPU."""
    driver = _DriverProperties(type=_DRIVER_PROPERTIES)
    found = _Properties2(type=_PROPERTIES_2, next=ctypes.addressof(driver))
    vulkan.vkGetPhysicalDeviceProperties2(device, ctypes.byref(found))
    if found.device_type != _CPU:
        return None
    name = "lavapipe" if driver.driver == _LAVAPIPE else driver.name.decode()
    version = re.search(r"\d+(\.\d+)+", driver.info.decode())  # "Mesa 25.0.7-2~bpo12+1 (LLVM 15.0.6)"
    return Driver(name, tuple(int(part) for part in version[0].split("."))) if version else None


if __name__ == "__main__":
    print(find() or "")  # noqa: T201  # what cpu_driver reads
