"""The text of a compiled GPU program to what it costs one GPU at least: kernels, FLOPs, bytes in memory and on wires.

Every kernel takes max(FLOPs / peak, bytes / bandwidth) and its launch; the body of a loop counts as often as it runs; a
collective counts what a ring sends. Caches, tails and the real speed of a kernel are not modelled, so this is a lower
bound and not a clock. The products inside cuDNN's attention are no FLOPs here: the text does not say them.

Knows XLA's text of an optimised module, and no JAX.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pi05.chips import Chip

LAUNCH = 3e-6
"""Seconds to start a kernel."""
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_ARRAY = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\))? \{([^}]*)\}")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_NO_KERNEL = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "partition-id", "after-all"}
_COLLECTIVES = {"all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"}
_PARTS = {"dynamic-slice", "slice", "gather", "scatter"}
"""Operations that read a part of their operand."""


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: Without its %.
        result: Its type; of several results a tuple.
        operation: What it does.
        rest: Operands and what follows.
        line: All of it.
    """

    name: str
    result: str
    operation: str
    rest: str
    line: str

    @property
    def operands(self) -> list[str]:
        """The names of all it reads."""
        return _NAME.findall(self.rest.split("), ")[0])

    def called(self, keyword: str) -> str:
        """Return the computation that a keyword names."""
        found = re.search(rf"(?:{keyword})=%?([\w.\-]+)", self.line)
        if not found:
            raise ValueError(f"no {keyword} in {self.line[:200]!r}")
        return found[1]


@dataclass
class Cost:
    """What a program costs one GPU and step.

    Attributes:
        flops: Of matrix products, as often as they are done.
        memory: Bytes that kernels read and write.
        kernels, collectives: How many are started.
        compute, bandwidth, launches: Seconds of the kernels that the peak binds, of those that memory binds, and of
            starting them all.
        wire: Bytes that this GPU sends, by kind of collective.
        wire_seconds: They take at least, one after the other.
        network: Bytes that its node sends to others.
        schedule: Seconds of the step when collectives run beside what the program has placed between their start and
            their end.
    """

    flops: int = 0
    memory: int = 0
    kernels: int = 0
    collectives: int = 0
    compute: float = 0.0
    bandwidth: float = 0.0
    launches: float = 0.0
    wire: dict[str, float] = field(default_factory=dict[str, float])
    wire_seconds: float = 0.0
    network: float = 0.0
    schedule: float = 0.0

    @property
    def kernel_seconds(self) -> float:
        """Seconds of all kernels, one after the other."""
        return self.compute + self.bandwidth + self.launches


def read(text: str, chip: Chip, gpus: int) -> Cost:
    """Return the cost of a program.

    Args:
        text: Of the optimised and scheduled module.
        chip: What runs it.
        gpus: Of a node.
    """
    computations, entry = _computations(text)
    reader = _Reader(computations, chip, gpus)
    reader.cost.schedule = reader.walk(entry, 1)
    return reader.cost


def size(types: str) -> int:
    """Return the bytes of a type, a tuple's parts included."""
    return sum(_BYTES[kind] * math.prod(_numbers(sizes)) for kind, sizes in _ARRAY.findall(types))


def groups(line: str) -> list[tuple[int, ...]]:
    """Return which partitions a collective joins, in any of XLA's three ways to write that.

    {{0,1},{2,3}} · [2,2]<=[4] · mesh['a'=2,'b'=2] {'b'}; of the last two the partitions may be [2,2]T(1,0), transposed
    """
    if found := _MESH.search(line):
        axes = {name: int(count) for name, count in re.findall(r"'([^']+)'=(\d+)", found[1])}
        shape = list(axes.values())
        partitions = _transposed(_numbers(found[2] or "") or shape, _numbers(found[3] or ""))
        return _along(shape, [list(axes).index(name) for name in re.findall(r"'([^']+)'", found[4])], partitions)
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        ordered = _transposed(_numbers(found[3]), _numbers(found[4]) if found[4] else [])
        count, each = int(found[1]), int(found[2])
        return [tuple(ordered[group * each : (group + 1) * each]) for group in range(count)]
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line):
        return [tuple(_numbers(group)) for group in re.findall(r"\{([\d,]+)\}", found[1])]
    raise ValueError(f"no groups of devices that this reader knows in {line[:300]!r}")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _along(shape: Sequence[int], axes: Sequence[int], partitions: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the rows of a mesh of partitions along some of its axes."""
    found: dict[tuple[int, ...], list[int]] = {}
    for partition, coordinates in zip(partitions, itertools.product(*map(range, shape)), strict=True):
        fixed = tuple(number for axis, number in enumerate(coordinates) if axis not in axes)
        found.setdefault(fixed, []).append(partition)
    return [tuple(group) for group in found.values()]


def _transposed(shape: Sequence[int], order: Sequence[int]) -> list[int]:
    """Return 0, 1, ... as an array of a shape, its axes reordered, flat again."""
    order = order or range(len(shape))
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    places = itertools.product(*(range(shape[axis]) for axis in order))
    return [sum(number * strides[axis] for number, axis in zip(place, order, strict=True)) for place in places]


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Return the instructions of every computation, and the name of the one that is the program."""
    found: dict[str, list[Instruction]] = {}
    name = entry = ""
    for line in text.splitlines():
        if line[:1] not in ("", " ") and line.rstrip().endswith("{"):
            name = line.removeprefix("ENTRY ").removeprefix("%").partition(" ")[0]
            entry = name if line.startswith("ENTRY") else entry
            found[name] = []
        elif name and (parts := _INSTRUCTION.match(line)):
            found[name].append(Instruction(parts[1], parts[2], parts[3], parts[4], line))
    if not entry:
        raise ValueError(f"no program in a text that begins {text[:100]!r}")
    return found, entry


class _Reader:
    """Walks through a program as one GPU runs it and adds up what it costs."""

    def __init__(self, computations: dict[str, list[Instruction]], chip: Chip, gpus: int) -> None:
        self.computations, self.chip, self.gpus = computations, chip, gpus
        self.types = {name: {one.name: one.result for one in body} for name, body in computations.items()}
        self.cost = Cost()

    def walk(self, name: str, times: int) -> float:
        """Count a computation that runs so many times, and return the seconds of one time.

        There are two queues: kernels run one after the other, and so do collectives; a kernel waits for a collective
        where the program waits for its end.
        """
        now, wire_free = 0.0, 0.0
        ends: dict[str, float] = {}
        for one in self.computations[name]:
            kind = one.operation.removesuffix("-start")
            if one.operation == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.line)
                count = int(trips[1]) if trips else 1
                now += count * self.walk(one.called("body"), times * count)
            elif one.operation in ("call", "async-start"):
                now += self.walk(one.called("to_apply|calls"), times)
            elif kind in _COLLECTIVES:
                wire_free = max(now, wire_free) + self._collective(one, kind, times)
                ends[one.name] = wire_free
                now = now if one.operation.endswith("-start") else wire_free
            elif one.operation.endswith("-done"):
                now = max([now, *(ends.get(operand, 0.0) for operand in one.operands)])
            elif one.operation not in _NO_KERNEL:
                now += self._kernel(name, one, times)
        return max(now, wire_free)

    def _collective(self, one: Instruction, kind: str, times: int) -> float:
        """Count a collective and return its seconds: a ring's, over the slowest link that it takes."""
        joined = groups(one.line)
        n, whole, started = len(joined[0]), size(one.result), one.operation.endswith("-start")
        sent = _sent(kind, whole, n, started)
        away = sum(self._leaves(group) for group in joined if any(place < self.gpus for place in group))
        self.cost.collectives += times
        self.cost.wire[kind] = self.cost.wire.get(kind, 0.0) + times * sent
        self.cost.network += times * sent * away
        seconds = max(sent / self.chip.link, sent * away / self.chip.network)
        self.cost.wire_seconds += times * seconds
        return seconds

    def _leaves(self, group: tuple[int, ...]) -> bool:
        """Return whether devices of several nodes are in a group; partitions count node after node."""
        return len({place // self.gpus for place in group}) > 1

    def _kernel(self, body: str, one: Instruction, times: int) -> float:
        """Count a kernel and return its seconds."""
        flops, memory = self._work(body, one)
        compute, bandwidth = flops / self.chip.peak, memory / self.chip.bandwidth
        self.cost.flops += times * flops
        self.cost.memory += times * memory
        self.cost.kernels += times
        self.cost.launches += times * LAUNCH
        if compute > bandwidth:
            self.cost.compute += times * compute
        else:
            self.cost.bandwidth += times * bandwidth
        return max(compute, bandwidth) + LAUNCH

    def _work(self, body: str, one: Instruction) -> tuple[int, int]:
        """Return FLOPs and bytes of a kernel."""
        types = self.types[body]
        read, written = sum(size(types.get(operand, "")) for operand in one.operands), size(one.result)
        if one.operation == "fusion":
            return sum(self._products(one.called("calls"))), self._moved(one.called("calls"), read, written)
        if one.operation == "dot" or "cublas" in one.line:
            product = _ARRAY.search(one.result)
            result = product[0] if product else ""  # beside it there may be cuBLAS's own memory
            return _product(result, one, types), read + size(result)
        return 0, read + written

    def _moved(self, called: str, read: int, written: int) -> int:
        """Return the bytes of a fusion: of what it updates in place, and of what it takes parts of, only those."""
        inside = self.computations[called]
        updates = [one.operands[1] for one in inside if one.operation == "dynamic-update-slice"]
        if updates:
            return sum(2 * size(self.types[called].get(part, "")) for part in updates)
        takes_parts = any(one.operation in _PARTS for one in inside)
        return min(read, 4 * written) + written if takes_parts else read + written

    def _products(self, body: str) -> Iterator[int]:
        """Yield the FLOPs of every matrix product in a fusion."""
        for one in self.computations[body]:
            if one.operation == "dot":
                yield _product(one.result, one, self.types[body])
            elif one.operation == "fusion":
                yield from self._products(one.called("calls"))


def _product(result: str, one: Instruction, types: dict[str, str]) -> int:
    """Return the FLOPs of a matrix product: two for each element of the result and each that is summed over."""
    left = _ARRAY.search(types.get(one.operands[0], ""))
    axes = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d",]*)', one.line)
    if not left or not axes:
        return 0
    shape, array = _numbers(left[2]), _ARRAY.search(result)
    summed = math.prod(shape[int(axis)] for axis in re.findall(r"\d+", axes[1]))
    return 2 * math.prod(_numbers(array[2]) if array else []) * summed


def _sent(kind: str, whole: int, n: int, started: bool) -> float:
    """Return the bytes that each of n GPUs sends in a ring, from those of the result.

    The result of one that is started is a tuple of what goes in and what comes out, but for all-reduce.
    """
    match kind:
        case "all-gather" | "reduce-scatter":
            large = whole * n / (n + 1) if started else whole * (n if kind == "reduce-scatter" else 1)
            return large * (n - 1) / n
        case "all-reduce":
            return 2 * whole * (n - 1) / n
        case "all-to-all":
            return (whole / 2 if started else whole) * (n - 1) / n
        case _:
            return whole / 2 if started else whole
