"""The GPUs that a training can be planned for and measured against, as a table of what their makers publish.

Knows numbers alone: no JAX, no driver. Bandwidths and peaks are what the datasheet says, which no program reaches.
"""

from dataclasses import dataclass

from pi05.errors import ConfigError, nearest

GBIT = 1e9 / 8
JAX_SHARE = 0.9
"""Of a GPU's memory, what JAX is told to take in our pods (XLA_PYTHON_CLIENT_MEM_FRACTION)."""


@dataclass(frozen=True)
class Chip:
    """One kind of GPU.

    Attributes:
        name: What the user types.
        title: What its driver calls it; a device whose name begins so is this one.
        memory: Bytes, as the driver reports them.
        peak: bf16 FLOP/s of its matrix units, dense.
        bandwidth: Byte/s of its memory.
        link: Byte/s one way to the other GPUs of a node, all together.
        network: Byte/s one way of a node of 8 to other nodes, in its maker's reference system.
        capability: CUDA compute capability.
        cores, clock: Streaming multiprocessors, and their highest clock in GHz.
        fpus: float32 units of a core.
        threads: That a core holds at once.
        shared, shared_by_one: Bytes of shared memory of a core, and how much of it one block may ask for.
        cache: Bytes of its L2.
    """

    name: str
    title: str
    memory: int
    peak: float
    bandwidth: float
    link: float
    network: float
    capability: tuple[int, int]
    cores: int
    clock: float
    fpus: int
    threads: int
    shared: int
    shared_by_one: int
    cache: int


@dataclass(frozen=True)
class Machine:
    """The GPUs of a run: so many nodes with so many chips each."""

    chip: Chip
    gpus: int
    nodes: int = 1

    @property
    def words(self) -> str:
        """Return it for people."""
        each = f"{self.gpus} {self.chip.name}"
        return f"{self.nodes} nodes of {each}" if self.nodes > 1 else each

    @property
    def memory(self) -> int:
        """Bytes of one GPU that JAX takes."""
        return int(self.chip.memory * JAX_SHARE)


CHIPS = {
    chip.name: chip
    for chip in (
        # NVIDIA A100 80GB datasheet (SXM): 312 TFLOP/s, 2,039 GB/s, NVLink 600 GB/s both ways; DGX: 8 x 200 Gbit/s.
        Chip(
            "a100-80",
            "NVIDIA A100-SXM4-80GB",
            memory=85_100_068_864,
            peak=312e12,
            bandwidth=2.039e12,
            link=300e9,
            network=8 * 200 * GBIT,
            capability=(8, 0),
            cores=108,
            clock=1.41,
            fpus=64,
            threads=2048,
            shared=164 * 1024,
            shared_by_one=163 * 1024,
            cache=40 * 2**20,
        ),
        # NVIDIA H100 datasheet (SXM): 989 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s both ways; DGX H100: 8 x 400 Gbit/s.
        Chip(
            "h100",
            "NVIDIA H100 80GB HBM3",
            memory=84_929_347_584,
            peak=989e12,
            bandwidth=3.35e12,
            link=450e9,
            network=8 * 400 * GBIT,
            capability=(9, 0),
            cores=132,
            clock=1.98,
            fpus=128,
            threads=2048,
            shared=228 * 1024,
            shared_by_one=227 * 1024,
            cache=50 * 2**20,
        ),
        # NVIDIA H200 datasheet (SXM): the H100's chip with 141 GB at 4.8 TB/s; DGX H200: 8 x 400 Gbit/s.
        Chip(
            "h200",
            "NVIDIA H200",
            memory=151_397_597_184,
            peak=989e12,
            bandwidth=4.8e12,
            link=450e9,
            network=8 * 400 * GBIT,
            capability=(9, 0),
            cores=132,
            clock=1.98,
            fpus=128,
            threads=2048,
            shared=228 * 1024,
            shared_by_one=227 * 1024,
            cache=50 * 2**20,
        ),
        # NVIDIA HGX B200 datasheet, an eighth of it: 2.25 PFLOP/s, 7.7 TB/s, NVLink 1.8 TB/s both ways; DGX B200: 8 x
        # 400 Gbit/s.
        Chip(
            "b200",
            "NVIDIA B200",
            memory=191_514_411_008,
            peak=2250e12,
            bandwidth=7.7e12,
            link=900e9,
            network=8 * 400 * GBIT,
            capability=(10, 0),
            cores=148,
            clock=1.965,
            fpus=128,
            threads=2048,
            shared=228 * 1024,
            shared_by_one=227 * 1024,
            cache=126 * 2**20,
        ),
        # NVIDIA L40S datasheet: 362 TFLOP/s, 864 GB/s, PCIe 4.0 x16 (64 GB/s both ways) and no NVLink; OVX: 200 Gbit/s
        # for 2 GPUs.
        Chip(
            "l40s",
            "NVIDIA L40S",
            memory=47_697_362_944,
            peak=362e12,
            bandwidth=864e9,
            link=32e9,
            network=4 * 200 * GBIT,
            capability=(8, 9),
            cores=142,
            clock=2.52,
            fpus=128,
            threads=1536,
            shared=100 * 1024,
            shared_by_one=99 * 1024,
            cache=96 * 2**20,
        ),
    )
}


def find(name: str) -> Chip:
    """Return a chip; raise ConfigError with the nearest name when there is none of this one."""
    if name not in CHIPS:
        raise ConfigError(f"unknown chip {name!r}{nearest(name, CHIPS)}; there are {', '.join(CHIPS)}")
    return CHIPS[name]


def peak_of(title: str) -> float | None:
    """Return the bf16 FLOP/s of a chip by what its driver calls it; None when it is none of these."""
    return next((chip.peak for chip in CHIPS.values() if chip.title == title), None)
