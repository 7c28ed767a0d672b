"""A training job and the GPUs it is meant for -> its plan, computed from sizes: no JAX, no compiler, no wait.

What lies there between two steps is exact: the table of parameters and the rule by which they are split. The rest
follows the program as the compiler makes it, part by part (pi05.plan.parts):

    memory    what the backward pass needs, gradients, gathered weights; one layer more where layers are recomputed
    kernels   a product takes as long as its FLOPs or its bytes; elementwise work, a loop's copies and AdamW their bytes
    wire      weights are gathered for the forward pass, in a loop for the backward pass again, and gradients scattered

The constants below were counted in compiled programs. `scripts/bench compiled --estimate` shows how far off it is.
"""

import math
from dataclasses import dataclass

from pi05.chips import Machine
from pi05.config import TrainJob
from pi05.errors import ConfigError
from pi05.model import flops
from pi05.plan import parts, sizes
from pi05.plan.document import Needs, Plan, Times
from pi05.plan.parts import Part
from pi05.plan.program import LAUNCH
from pi05.plan.prompt import assumed_length

UNCERTAIN = 0.1
"""Largest error of the bytes that was found, as a share."""
_TABLE = "PaliGemma/llm/embedder/input_embedding"
_EXACT = 4
"""Bytes of a float32."""
_LAUNCHES = {
    "looped": {"tower": 116, "language": 104, "suffix": 114, "step": 570},
    "unrolled": {"tower": 60, "language": 50, "suffix": 50, "step": 570},
}
"""Kernels that a layer starts, forward and backward, and those that are in no layer."""
_UPDATES = 4
"""Kernels of the optimizer for an array."""
_UPDATED = 36, 8
"""Bytes that the optimizer moves for a number: weight, moments and gradient with their norms, and the average."""
_ALIKE = {"looped": 8, "unrolled": 0}
"""How often a loop moves what it keeps: it clears the stack, copies in, and copies out, which counts five times."""
_IN_HAND = 6
"""Of a loop: the weights of how many layers are gathered, being gathered, or gradients on their way."""
_SOFTMAX = 8, 10
"""Bytes that are moved for a logit beside the products, forward and backward."""
_CAST = 8.5
"""Bytes that are moved for a number of a weight before it is computed with and for its gradient, in each part."""
_BESIDE = 7
"""Kernels more for each product with a factor of LoRA."""
_EXPOSED = {"looped": 0.32, "unrolled": 0.13}
"""Of the wire inside a node, what no kernel runs beside."""


@dataclass(frozen=True)
class _Given:
    """A job on GPUs, and what follows at once.

    Attributes:
        shards: GPUs that share one copy of the parameters.
        samples: That a GPU computes at a time.
        layers: looped or unrolled.
        fused: Whether attention is cuDNN's, which keeps no logits.
        width: Bytes of a number of the compute type.
    """

    job: TrainJob
    machine: Machine
    tokens: int
    shards: int
    samples: int
    layers: str
    fused: bool
    width: int

    @property
    def devices(self) -> int:
        return self.machine.gpus * self.machine.nodes


def estimate(job: TrainJob, machine: Machine) -> Plan:
    """Return a training's plan on some GPUs.

    Raises:
        ConfigError: Batch, parts or parameters do not divide over them.
    """
    given = _given(job, machine)
    stacks = parts.parts(job, given.tokens)
    needs = _needs(given, stacks)
    work = _Work(given)
    for stack in stacks:
        work.add(stack)
    work.update()
    wire, network = _wire(given)
    kernels = _kernels(given, stacks)
    times = _times(given, work, kernels, wire, network)
    return Plan(
        how="estimated",
        chip=machine.chip.name,
        gpus=machine.gpus,
        nodes=machine.nodes,
        batch_size=job.train.batch_size,
        steps=job.train.steps,
        tokens=given.tokens,
        tokens_known=False,
        memory=machine.memory,
        needs=needs,
        flops=round(work.flops),
        model_flops=model_flops(job, machine, given.tokens),
        traffic=round(work.bytes),
        kernels=kernels,
        wire=round(wire),
        network=round(network),
        times=times,
    )


def model_flops(job: TrainJob, machine: Machine, tokens: int) -> int:
    """Return the FLOPs of one GPU and step that the mathematics asks for."""
    train = job.train
    cameras, trained = len(job.convention.cameras), parts.trained_paths(job)
    whole = flops.of_step(job.model, cameras, tokens, train.batch_size, train.draws_per_sample, trained)
    return whole // (machine.gpus * machine.nodes)


def check(job: TrainJob, machine: Machine) -> None:
    """Raise ConfigError when a job cannot be divided over GPUs."""
    devices, batch = machine.gpus * machine.nodes, job.train.batch_size
    shards, at_once = job.train.fsdp_devices or machine.gpus, devices * job.compute.microbatches
    if devices % shards:
        raise ConfigError(f"train.fsdp_devices {shards} does not divide {machine.words}; use a divisor of {devices}")
    if batch % at_once:
        below = batch // at_once * at_once
        use = f"{below} or {below + at_once}" if below else f"{at_once}"
        in_parts = f" in {job.compute.microbatches} microbatches" if job.compute.microbatches > 1 else ""
        raise ConfigError(f"train.batch_size {batch} is not divisible by {machine.words}{in_parts}; use {use}")


def _given(job: TrainJob, machine: Machine) -> _Given:
    check(job, machine)
    devices, compute, model = machine.gpus * machine.nodes, job.compute, job.model
    widest = max((head for least, head in parts.CUDNN.items() if machine.chip.capability >= least), default=0)
    has_cudnn = (
        compute.dtype == "bfloat16" and max(model.vlm.head_dim, model.vit.width // model.vit.num_heads) <= widest
    )
    return _Given(
        job,
        machine,
        tokens=assumed_length(job),
        shards=job.train.fsdp_devices or machine.gpus,
        samples=job.train.batch_size // devices // compute.microbatches,
        layers="unrolled" if compute.layers == "auto" else compute.layers,
        fused=compute.attention == "cudnn" or (compute.attention == "auto" and has_cudnn),
        width=2 if compute.dtype == "bfloat16" else _EXACT,
    )


def _needs(given: _Given, stacks: tuple[Part, ...]) -> Needs:
    """Return the bytes of one GPU."""
    job, model, held = given.job, given.job.model, _held(given)
    trained = sum(held[path] for path in parts.trained_paths(job))
    rows = job.train.batch_size // given.devices
    pixels = 3 * model.image_size**2 * len(job.convention.cameras)
    chunk = model.action_horizon * model.action_dim
    return Needs(
        parameters=sum(numbers * _stored(given, path) for path, numbers in held.items()),
        moments=2 * _EXACT * trained,
        averages=_EXACT * trained if job.train.ema_decay is not None else 0,
        batch=rows * (pixels + (_EXACT + 1) * (given.tokens + chunk)),
        temporary=round(_temporary(given, stacks)),
    )


def _held(given: _Given) -> dict[str, int]:
    """Return how many numbers of each array lie on one GPU, by the rule of pi05.sharding.fsdp_sharding."""

    def part(path: str, shape: tuple[int, ...]) -> int:
        whole = math.prod(shape)
        large = whole * _stored(given, path) >= given.job.train.fsdp_min_bytes
        return whole // given.shards if large and any(size % given.shards == 0 for size in shape) else whole

    return {path: part(path, shape) for path, shape in sizes.shapes(given.job.model).items()}


def _stored(given: _Given, path: str) -> int:
    """Return the bytes of a number of a parameter: frozen ones (norms aside, which are small) lie there as computed."""
    return _EXACT if path in parts.trained_paths(given.job) else given.width


def _temporary(given: _Given, stacks: tuple[Part, ...]) -> float:
    """Return what a step needs beside the state: activations, gradients and gathered weights."""
    at_once = given.samples * (2 if given.job.compute.microbatches == 2 else 1)  # two parts run side by side
    kept = sum(_kept(given, stack, stack.recompute) * (stack.depth if stack.flows else 0) for stack in stacks)
    again = max(_kept(given, stack, "nothing") for stack in stacks)
    kept += again * (stacks[0].recompute != "nothing")
    trained = parts.trained_paths(given.job)
    gradients = sum(numbers for path, numbers in _held(given).items() if path in trained) * _EXACT
    return at_once * kept + gradients * (2 if given.job.compute.microbatches > 1 else 1) + _gathered(given)


def _kept(given: _Given, part: Part, recompute: str) -> float:
    """Return the bytes of one sample that the backward pass of one layer needs."""
    numbers = part.rows * part.tokens * part.kept[recompute] * given.width
    seen = part.attention
    logits = 0 if given.fused or recompute != "nothing" else part.rows * seen.heads * seen.queries * seen.keys
    return numbers + logits * given.width


def _gathered(given: _Given) -> float:
    """Return the bytes of weights as they are computed with: of all layers, or of those that a loop has in hand."""
    matrices = _matrices(given)
    if given.layers == "unrolled":
        held = _held(given)
        copied = (path for path, size in matrices.items() if size > held[path] or _stored(given, path) != given.width)
        return given.width * sum(matrices[path] for path in copied)
    language = sum(size for path, size in matrices.items() if "/layers/" in path and "_1/" not in path)
    return _IN_HAND * given.width * language / given.job.model.vlm.depth


def _matrices(given: _Given) -> dict[str, int]:
    """Return how many numbers the arrays have that tokens are multiplied by."""
    table = sizes.shapes(given.job.model)
    return {path: math.prod(shape) for path, shape in table.items() if len(shape) > 1 and path != _TABLE}


class _Work:
    """What the kernels of one GPU and step do, and how long it takes them.

    Attributes:
        flops: Of matrix products.
        bytes: That kernels read and write.
        compute, memory: Seconds of the kernels that arithmetic binds, and of the others.
    """

    def __init__(self, given: _Given) -> None:
        self._given, self._chip = given, given.machine.chip
        self.flops = self.bytes = self.compute = self.memory = 0.0

    def add(self, part: Part) -> None:
        """Count a part's products, attention, elementwise work and copies."""
        given = self._given
        t = given.samples * part.rows * part.tokens
        times = part.depth * given.job.compute.microbatches
        again = part.flows and part.recompute == "layers"
        for place, (rows, columns) in enumerate(part.products):
            last = place == len(part.products) - 1
            self._product(t, rows, columns, times * (1 + part.own + part.flows + (again and not last)))
        for rows, columns in part.factors:
            self._product(t, rows, columns, times * (2 + part.flows + again))
        self._attention(part, times * (1 + again), times * part.flows)
        elementwise = part.forward * (1 + (part.flows and part.recompute != "nothing")) + part.backward * part.flows
        self.move(times * t * elementwise * given.width)
        kept = _kept(given, part, part.recompute) * given.samples * part.flows
        self.move(times * kept * _ALIKE[given.layers])

    def update(self) -> None:
        """Count the optimizer, and how weights become what is computed with."""
        held, trained = _held(self._given), set(parts.trained_paths(self._given.job))
        average = self._given.job.train.ema_decay is not None
        each = _UPDATED[0] + _UPDATED[1] * average
        self.move(each * sum(numbers for path, numbers in held.items() if path in trained))
        self.move(_CAST * sum(_matrices(self._given).values()) * self._given.job.compute.microbatches)

    def move(self, amount: float) -> None:
        """Count bytes that a kernel moves and does little with."""
        self.bytes += amount
        self.memory += amount / self._chip.bandwidth

    def _attention(self, part: Part, forward: float, backward: float) -> None:
        """Count cuDNN's kernels by their bytes, or XLA's products and the float32 logits between them."""
        given, seen = self._given, part.attention
        rows = given.samples * part.rows
        mixed, kv = seen.queries * seen.heads * seen.dim, seen.keys * seen.kv
        self.move((2 * forward + 4 * backward) * rows * (mixed + kv) * given.width)
        if not given.fused:
            logits = rows * seen.heads * seen.queries * seen.keys
            for side in (_EXACT, given.width):  # queries by keys make float32, what values are mixed by is rounded
                moved = side * logits + given.width * (rows * seen.heads * seen.queries * seen.dim + rows * kv)
                self._kernel(2 * logits * seen.dim, moved, forward + 2 * backward)
            self.move((_SOFTMAX[0] * forward + _SOFTMAX[1] * backward) * logits)

    def _product(self, t: int, rows: int, columns: int, times: float) -> None:
        """Count t tokens times a matrix, so often; its gradients cost the same."""
        self._kernel(2 * t * rows * columns, self._given.width * (t * rows + rows * columns + t * columns), times)

    def _kernel(self, work: float, moved: float, times: float) -> None:
        """Count a kernel, so often, by what binds it."""
        compute, memory = work / self._chip.peak, moved / self._chip.bandwidth
        self.flops += times * work
        self.bytes += times * moved
        if compute > memory:
            self.compute += times * compute
        else:
            self.memory += times * memory


def _wire(given: _Given) -> tuple[float, float]:
    """Return the bytes that a GPU sends, and those that a node sends to others."""
    trained, held = set(parts.trained_paths(given.job)), _held(given)
    share = (given.shards - 1) / given.shards
    copies = given.devices // given.shards
    gathers = 1 if given.layers == "unrolled" else 2
    sent = reduced = 0.0
    for path, numbers in _matrices(given).items():
        if numbers > held[path]:
            again = gathers if "_1/" not in path else 1
            sent += given.width * numbers * share * (again + (path in trained)) * given.job.compute.microbatches
    for path, numbers in held.items():
        if path in trained:
            reduced += numbers * (_EXACT if path == _TABLE else given.width)
    between = 2 * reduced * (copies - 1) / copies
    away = given.machine.gpus * between if given.machine.nodes > 1 else 0.0
    return sent + between, away


def _kernels(given: _Given, stacks: tuple[Part, ...]) -> int:
    """Return how many kernels a step starts."""
    counts = _LAUNCHES[given.layers]
    each = {stack.name: counts[stack.name] + _BESIDE * len(stack.factors) for stack in stacks}
    layers = sum(each[stack.name] * stack.depth * (1 if stack.flows else 1 / 3) for stack in stacks)
    return round(
        layers * given.job.compute.microbatches + counts["step"] + _UPDATES * len(parts.trained_paths(given.job))
    )


def _times(given: _Given, work: _Work, kernels: int, wire: float, network: float) -> Times:
    chip = given.machine.chip
    inside, between = wire / chip.link, network / chip.network
    launches = kernels * LAUNCH
    exposed = _EXPOSED[given.layers] * (inside + between)
    step = work.compute + work.memory + launches + exposed
    return Times(compute=work.compute, memory=work.memory, launches=launches, wire=inside + between, step=step)
