"""What a driver says of its GPUs, by a stand-in of the functions of pynvml: there is no GPU here."""

# ruff: noqa: N802 - the names are NVML's

from types import SimpleNamespace

import pytest

from pi05 import nvml as gpus


class NVMLError(Exception):
    """As the library's own."""


class Nvml:
    """Two GPUs; the second is slowed down, knows no power, and has no ECC."""

    NVMLError = NVMLError
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 1, 0

    def __init__(self) -> None:
        self.reasons = [0x4, 0x4 | 0x40 | 0x80]
        self.errors = 0

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, gpu: int) -> str:
        del gpu
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> SimpleNamespace:
        return SimpleNamespace(used=(gpu + 1) * 10**10, total=85 * 10**9)

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=100 - 50 * gpu)

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        return self._known_by_first(gpu, 612_000)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: int) -> int:
        return self.reasons[gpu]

    def nvmlDeviceGetTotalEccErrors(self, gpu: int, kind: int, since: int) -> int:
        assert (kind, since) == (1, 0)
        return self._known_by_first(gpu, self.errors)

    def _known_by_first(self, gpu: int, value: int) -> int:
        if gpu:
            raise NVMLError("not supported")
        return value


@pytest.fixture
def nvml() -> Nvml:
    return Nvml()


def test_each_gpu_is_told(nvml: Nvml) -> None:
    first, second = gpus.read(nvml)
    assert (first.used_gb, first.total_gb, first.utilisation, first.watts) == (10.0, 85.0, 1.0, 612.0)
    assert (first.slowed, first.ecc_errors, first.trouble) == ((), 0, ""), "the power limit is no trouble"
    assert (second.watts, second.ecc_errors) == (None, None)
    assert second.trouble == "GPU 1 (NVIDIA H100 80GB HBM3) is slowed down by heat and power supply"
    assert first.short() == {"gpu": 0, "gb": 10.0, "use": 1.0, "watts": 612.0, "ecc": 0}
    assert second.short() == {"gpu": 1, "gb": 20.0, "use": 0.5, "slowed": "heat, power supply"}


def test_all_of_them_make_a_few_numbers(nvml: Nvml) -> None:
    assert gpus.metrics(gpus.read(nvml)) == {
        "gpu_utilisation": 0.75,
        "gpu_watts": 612.0,
        "gpus_slowed": 1.0,
        "gpu_ecc_errors": 0.0,
    }


def test_a_trouble_is_said_once_and_again_when_it_changes(nvml: Nvml) -> None:
    watch = gpus.Watch(nvml)
    assert len(watch.look()[1]) == 1
    assert watch.look()[1] == []
    nvml.errors = 2
    assert watch.look()[1] == ["GPU 0 (NVIDIA H100 80GB HBM3) has 2 uncorrected memory errors"]
    nvml.reasons = [0, 0]
    assert watch.look()[1] == []
    nvml.reasons = [0, 0x40]
    assert watch.look()[1] == ["GPU 1 (NVIDIA H100 80GB HBM3) is slowed down by heat"]


def test_without_a_driver_there_is_nothing_to_tell() -> None:
    assert gpus.read(None) == []
    assert gpus.metrics([]) == {}
    assert gpus.Watch(None).look() == ([], [])
