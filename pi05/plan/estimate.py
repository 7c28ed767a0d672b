"""A training job and the GPUs it is meant for -> its plan, computed from sizes: no JAX, no compiler, no wait.

What lies there between two steps is exact: the table of parameters and the rule by which they are split. The rest
follows the program as the compiler makes it, part by part (pi05.plan.parts):

    memory    what the backward pass needs, and gathered weights or gradients; of recomputed layers one more, whole
    kernels   a product takes as long as its FLOPs or its bytes; elementwise work, a loop's copies and AdamW their bytes
    wire      weights are gathered for the forward pass, in a loop for the backward pass again, and gradients scattered

Products of cuDNN's attention are left out, as pi05.plan.program leaves them out. The constants were counted in compiled
programs of the full preset; `scripts/bench compiled --estimate` shows how far off it is for others.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pi05.chips import Machine
from pi05.config import ComputeConfig, TrainJob
from pi05.errors import ConfigError
from pi05.model import flops
from pi05.model.leaves import EMBEDDING, leaves
from pi05.plan import parts
from pi05.plan.document import Needs, Plan, Times
from pi05.plan.parts import Part
from pi05.plan.program import LAUNCH
from pi05.plan.prompt import assumed_length

UNCERTAIN = 0.1
"""Error of the bytes that is allowed for, as a share."""
_EXACT = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class _Program:
    """What was counted in compiled programs.

    Attributes:
        launches: Kernels of a layer of each part, forward and backward, and of the step outside of layers.
        gathers: How often a step gathers the weights that are split.
        cast: Bytes that are moved for a number of a weight, to compute with it and for its gradient.
        copies: How often what is kept is moved: a loop clears a stack, copies in, and out, which counts as five.
        exposed: Of the wire, what no kernel runs beside.
        in_turn: Whether layers that are computed again are so one after the other; otherwise all of them lie there.
    """

    launches: Mapping[str, int]
    gathers: int
    cast: float
    copies: int
    exposed: float
    in_turn: bool = True


_LOOPED = _Program({"tower": 116, "language": 104, "suffix": 114, "step": 576}, 2, 8.5, 8, 0.32)
_UNROLLED = _Program({"tower": 51, "language": 49, "suffix": 54, "step": 357}, 1, 4.3, 0, 0.14)
_UNROLLED_AGAIN = _Program({"tower": 118, "language": 78, "suffix": 53, "step": 331}, 2, 8.5, 0, 0.04, in_turn=False)
"""Unrolled, and whole layers computed again: the compiler starts that for many layers at once."""
_FACTOR = 7
"""Kernels more for each product with a factor of LoRA."""
_UPDATES = 4
"""Kernels of the optimizer for an array."""
_UPDATE, _AVERAGE = 36, 8
"""Bytes that the optimizer moves for a number: weight, moments, gradient and the norms of both; and for its average."""
_IN_HAND = 6
"""Of a loop: of how many layers weights are gathered, or gradients not yet scattered."""
_SOFTMAX = 8, 10
"""Bytes that are moved for a logit beside its products, forward and backward."""


@dataclass(frozen=True)
class _Given:
    """A job on GPUs, and what follows at once.

    Attributes:
        job, machine: What is trained on what.
        tokens: Length of a prompt.
        stacks: The model's parts.
        shapes: Of all arrays.
        held: How many numbers of each lie on one GPU.
        trained: The paths of those that are trained.
        samples: That a GPU computes at a time.
        program: How layers are run.
        fused: Whether attention is cuDNN's, which keeps no logits.
        width: Bytes of a number of the compute type.
    """

    job: TrainJob
    machine: Machine
    tokens: int
    stacks: tuple[Part, ...]
    shapes: dict[str, tuple[int, ...]]
    held: dict[str, int]
    trained: frozenset[str]
    samples: int
    program: _Program
    fused: bool
    width: int

    @property
    def devices(self) -> int:
        return self.machine.gpus * self.machine.nodes

    @property
    def matrices(self) -> dict[str, int]:
        """How many numbers the arrays have that tokens are multiplied by."""
        large = {path: math.prod(shape) for path, shape in self.shapes.items() if len(shape) > 1}
        return {path: numbers for path, numbers in large.items() if path != EMBEDDING}

    def stored(self, path: str) -> int:
        """Return the bytes of a number: frozen ones lie there as computed with, but for norms, which are small."""
        return _EXACT if path in self.trained else self.width


def estimate(job: TrainJob, machine: Machine) -> Plan:
    """Return a training's plan on some GPUs.

    Raises:
        ConfigError: Batch, parts or parameters do not divide over them.
    """
    given = _given(job, machine)
    work, (wire, network), kernels = _work(given), _wire(given), _kernels(given)
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
        needs=_needs(given),
        flops=round(work.flops),
        model_flops=model_flops(job, machine, given.tokens),
        traffic=round(work.bytes),
        kernels=kernels,
        wire=round(wire),
        network=round(network),
        times=_times(given, work, kernels, wire / machine.chip.link + network / machine.chip.network),
    )


def near(plan: Plan) -> bool:
    """Return whether an error of an estimate could decide whether a step fits."""
    return abs(plan.needs.total / plan.memory - 1) <= UNCERTAIN


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
    devices, compute, model, tokens = machine.gpus * machine.nodes, job.compute, job.model, assumed_length(job)
    shapes = {path: leaf.shape for path, leaf in leaves(model).items()}
    trained = frozenset(parts.trained_paths(job))
    width = 2 if compute.dtype == "bfloat16" else _EXACT
    widest = max((head for least, head in parts.CUDNN.items() if machine.chip.capability >= least), default=0)
    heads = model.vlm.head_dim, model.vit.width // model.vit.num_heads
    has_cudnn = compute.dtype == "bfloat16" and max(heads) <= widest
    return _Given(
        job,
        machine,
        tokens,
        stacks=parts.parts(job, tokens),
        shapes=shapes,
        held={path: _held(job, machine, shape, _EXACT if path in trained else width) for path, shape in shapes.items()},
        trained=trained,
        samples=job.train.batch_size // devices // compute.microbatches,
        program=_program(compute),
        fused=compute.attention == "cudnn" or (compute.attention == "auto" and has_cudnn),
        width=width,
    )


def _program(compute: ComputeConfig) -> _Program:
    if compute.layers == "looped":
        return _LOOPED
    return _UNROLLED_AGAIN if compute.recompute == "layers" else _UNROLLED


def _held(job: TrainJob, machine: Machine, shape: tuple[int, ...], stored: int) -> int:
    """Return how many numbers of an array lie on one GPU, by the rule of pi05.sharding.fsdp_sharding."""
    whole, shards = math.prod(shape), job.train.fsdp_devices or machine.gpus
    splits = whole * stored >= job.train.fsdp_min_bytes and any(size % shards == 0 for size in shape)
    return whole // shards if splits else whole


def _needs(given: _Given) -> Needs:
    """Return the bytes of one GPU."""
    job, model = given.job, given.job.model
    trained = sum(given.held[path] for path in given.trained)
    pixels = 3 * model.image_size**2 * len(job.convention.cameras)
    others = (_EXACT + 1) * (
        given.tokens + model.action_horizon * model.action_dim
    )  # numbers, and whether they are real
    return Needs(
        parameters=sum(numbers * given.stored(path) for path, numbers in given.held.items()),
        moments=2 * _EXACT * trained,
        averages=_EXACT * trained if job.train.ema_decay is not None else 0,
        batch=job.train.batch_size // given.devices * (pixels + others),
        temporary=round(_temporary(given)),
    )


def _temporary(given: _Given) -> float:
    """Return what a step needs beside the state: activations, gradients and gathered weights.

    A loop has the stacks of all gradients from its beginning. Unrolled, there are few when most is kept and gathered.
    """
    parts_of_batch = given.job.compute.microbatches
    samples = given.samples
    kept = 0.0
    for stack in given.stacks:
        what = stack.recompute if given.program.in_turn else "nothing"
        kept += samples * _kept(given, stack, what) * stack.depth * stack.flows
    if given.program.in_turn and given.job.compute.recompute != "nothing":
        kept += samples * max(_kept(given, stack, "nothing") for stack in given.stacks)
    gradients = _EXACT * sum(given.held[path] for path in given.trained)
    if parts_of_batch > 1:
        return kept + _gathered(given) + 2 * gradients
    return kept + (_gathered(given) + gradients if given.program.copies else max(_gathered(given), gradients))


def _kept(given: _Given, part: Part, recompute: str) -> float:
    """Return the bytes of one sample that the backward pass of one layer needs."""
    seen = part.attention
    logits = 0 if given.fused or recompute != "nothing" else part.rows * seen.heads * seen.queries * seen.keys
    exact = _EXACT + given.width  # softmax keeps what it made, the product with values that rounded
    return given.width * part.rows * part.tokens * part.kept[recompute] + exact * logits


def _gathered(given: _Given) -> float:
    """Return the bytes of weights as they are computed with: of all layers, or of those that a loop has in hand."""
    matrices = given.matrices
    if given.program.gathers == 1:
        return given.width * sum(numbers for path, numbers in matrices.items() if _is_made(given, path, numbers))
    language = sum(numbers for path, numbers in matrices.items() if "/layers/" in path and "_1/" not in path)
    return _IN_HAND * given.width * language / given.job.model.vlm.depth


def _is_made(given: _Given, path: str, numbers: int) -> bool:
    """Return whether what is computed with is another array than the one that lies there."""
    return numbers > given.held[path] or given.stored(path) != given.width


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
        given, again = self._given, part.flows and part.recompute == "layers"
        t, times = given.samples * part.rows * part.tokens, part.depth * given.job.compute.microbatches
        for place, (rows, columns) in enumerate(part.products):
            last = place == len(part.products) - 1
            self._product(t, rows, columns, times * (1 + part.own + part.flows + (again and not last)))
        for rows, columns in part.factors:
            self._product(t, rows, columns, times * (2 + part.flows + again))
        self._attention(part, times * (1 + again), times * part.flows)
        passes = 1 + (part.flows and part.recompute != "nothing")
        self.move(times * t * (part.forward * passes + part.backward * part.flows) * given.width)
        kept = given.samples * _kept(given, part, part.recompute)
        self.move(times * kept * part.flows * given.program.copies)

    def move(self, amount: float) -> None:
        """Count bytes that are moved, and of which little is made."""
        self._kernel(0, amount, 1)

    def _product(self, t: int, rows: int, columns: int, times: float) -> None:
        """Count t tokens times a matrix, so often; its gradients cost the same."""
        self._kernel(2 * t * rows * columns, self._given.width * (t * rows + rows * columns + t * columns), times)

    def _attention(self, part: Part, forward: float, backward: float) -> None:
        """Count cuDNN's kernels by their bytes, or XLA's products and the logits between them."""
        given, seen = self._given, part.attention
        rows = given.samples * part.rows
        mixed, kv = rows * seen.queries * seen.heads * seen.dim, rows * seen.keys * seen.kv
        self.move((2 * forward + 4 * backward) * (mixed + kv) * given.width)
        if given.fused:
            return
        logits = rows * seen.heads * seen.queries * seen.keys
        for side in (_EXACT, given.width):  # queries by keys make float32; what values are mixed by is rounded
            self._kernel(2 * logits * seen.dim, side * logits + given.width * (mixed + kv), forward + 2 * backward)
        self.move((_SOFTMAX[0] * forward + _SOFTMAX[1] * backward) * logits)

    def _kernel(self, work: float, moved: float, times: float) -> None:
        """Count a kernel, so often, by what binds it."""
        compute, memory = work / self._chip.peak, moved / self._chip.bandwidth
        self.flops += times * work
        self.bytes += times * moved
        if compute > memory:
            self.compute += times * compute
        else:
            self.memory += times * memory


def _work(given: _Given) -> _Work:
    """Return what the kernels of a step do."""
    work = _Work(given)
    for stack in given.stacks:
        work.add(stack)
    updated = sum(given.held[path] for path in given.trained)
    work.move(updated * (_UPDATE + _AVERAGE * (given.job.train.ema_decay is not None)))
    work.move(given.program.cast * sum(given.matrices.values()) * given.job.compute.microbatches)
    return work


def _wire(given: _Given) -> tuple[float, float]:
    """Return the bytes that a GPU sends, and those that a node sends to others."""
    shards = given.job.train.fsdp_devices or given.machine.gpus
    share, copies = (shards - 1) / shards, given.devices // shards
    sent = 0.0
    for path, numbers in given.matrices.items():
        if numbers > given.held[path]:
            gathers = given.program.gathers if "_1/" not in path else 1  # the suffix keeps its own
            sent += given.width * numbers * share * (gathers + (path in given.trained))
    gradients = sum(given.held[path] * (_EXACT if path == EMBEDDING else given.width) for path in given.trained)
    between = 2 * gradients * (copies - 1) / copies
    network = given.machine.gpus * between if given.machine.nodes > 1 else 0.0
    return sent * given.job.compute.microbatches + between, network


def _kernels(given: _Given) -> int:
    """Return how many kernels a step starts; without a backward pass, a third of a layer's."""
    counts = given.program.launches
    layers = sum(
        stack.depth * (counts[stack.name] + _FACTOR * len(stack.factors)) * (1 if stack.flows else 1 / 3)
        for stack in given.stacks
    )
    return round(layers * given.job.compute.microbatches + counts["step"] + _UPDATES * len(given.trained))


def _times(given: _Given, work: _Work, kernels: int, wire: float) -> Times:
    launches = kernels * LAUNCH
    step = work.compute + work.memory + launches + given.program.exposed * wire
    return Times(compute=work.compute, memory=work.memory, launches=launches, wire=wire, step=step)
