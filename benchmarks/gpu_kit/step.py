"""The optimizer step on one device -> seconds, samples/s, MFU and memory, by how it is computed.

Few devices hold the training state of the full preset (16 bytes a parameter, 54 GB) and what a step needs beside it,
so as many layers are left out as need be; unrolled, a step needs less, and one H100 holds all of them. Rows of equal
depth are the same model, state and batch, computed in other ways. LoRA is the whole model: most of it is frozen and in
bfloat16.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from benchmarks.gpu_kit import drawn, prediction
from benchmarks.gpu_kit.parts import Case, NotHere, Row
from benchmarks.gpu_kit.sizes import TOKENS, Sizes, cut
from pi05 import sharding
from pi05.config import ComputeConfig, ModelConfig, TrainConfig
from pi05.model import flops, tree
from pi05.training import step
from pi05ctl.errors import UsageError
from pi05ctl.spec.runspec import Options

_WAYS = (
    {"layers": "looped"},
    {"layers": "unrolled"},
    {"layers": "looped", "attention": "xla"},
    {"layers": "looped", "recompute": "cheap"},
    {"layers": "looped", "recompute": "layers"},
    {"layers": "unrolled", "recompute": "cheap"},
)
"""What differs from the preset. The first compiles quickest, the second is what the preset comes to on a GPU."""
_LORA_ROWS = (8, 16, 32)
_BYTES = {"looped": 25, "unrolled": 22}
"""A parameter, all together, with 8 samples: by the compiler, for described H100s and all layers, 24.5 and 21.0."""
_WARM = 3


@dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
        call: Takes it.
        seconds: To compile it.
        bytes: That it needs, by the compiler.
    """

    call: Any
    seconds: float
    bytes: int


class Bench:
    """A model, a batch and, once it is needed, a state on one device, and the steps that they take.

    Args:
        options: A preset.
        model: Its model, or fewer layers of it.
        rows: Samples of a batch.
        steps: That are timed.
    """

    def __init__(self, options: Options, model: ModelConfig, rows: int, steps: int) -> None:
        self.device, self.model, self._rows, self._steps = jax.devices()[0], model, rows, steps
        self._train: TrainConfig = options.train.model_copy(update={"batch_size": rows, "fsdp_devices": 1})
        self._compute = options.compute  # by its type frozen parameters are kept; other ways to compute keep it
        self._mesh = sharding.make_mesh(1, rows, [self.device])
        cameras = options.convention.cameras
        self._batch = drawn.batch(self._mesh, model, cameras, rows)
        trained = step.trainable_paths(model, self._train.freeze)
        self._flops = flops.of_step(model, len(cameras), TOKENS, rows, self._train.draws_per_sample, trained)
        self._state: step.TrainState | None = None

    @property
    def limit(self) -> float:
        """Bytes that the device gives to this process."""
        return float((self.device.memory_stats() or {}).get("bytes_limit", float("inf")))

    def measured(self, compute: ComputeConfig) -> Row:
        """Return what a step takes, computed so."""
        program = self._compiled(compute)
        row: Row = {"rows": self._rows, "parameters": tree.count(self.model), "compile_seconds": program.seconds}
        row["planned_gb"] = program.bytes / 1e9
        if program.bytes > self.limit:
            return row | {"not here": f"it needs more than the {self.limit / 1e9:.1f} GB there are"}
        seconds, loss = self._timed(program.call)
        row |= {"step_ms": seconds * 1e3, "samples_per_second": self._rows / seconds, "loss": loss}
        return row | self._beside(seconds, program)

    def _compiled(self, compute: ComputeConfig) -> Program:
        """Compile the step; nothing is allocated."""
        begin = time.perf_counter()
        call = self._step(compute).lower(self._shapes(), self._batch).compile()
        seconds, memory = time.perf_counter() - begin, call.memory_analysis()
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return Program(call, seconds, memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs)

    def _beside(self, seconds: float, program: Program) -> Row:
        """Return what says how good that is, as far as it is known."""
        row: Row = {"tflop": self._flops / 1e12}
        if peak := prediction.peak(self.device):
            row["mfu"] = self._flops / seconds / peak
        if predicted := prediction.milliseconds(program.call.as_text(), self.device):
            row["predicted_ms"] = predicted
        if memory := self.device.memory_stats():
            row["peak_gb"] = memory["peak_bytes_in_use"] / 1e9  # of all rows so far
        return row

    def _timed(self, call: Callable[..., Any]) -> tuple[float, float]:
        """Return the median seconds between the ends of two steps, of which one waits while the other runs."""
        state, self._state = self._fresh(), None
        ends, last = [], None
        for _ in range(_WARM + self._steps):
            state, metrics = call(state, self._batch)
            if last is not None:
                jax.block_until_ready(last)
                ends.append(time.perf_counter())
            last = metrics["loss"]
        loss = float(last) if last is not None else float("nan")
        self._state = state
        spans = [after - before for before, after in zip(ends[_WARM - 1 :], ends[_WARM:], strict=False)]
        return statistics.median(spans), loss

    def _fresh(self) -> step.TrainState:
        """Return the state that the last row left, or another one where that is gone."""
        return drawn.state(self._mesh, self.model, self._train, self._compute) if self._state is None else self._state

    def _step(self, compute: ComputeConfig) -> Any:
        return step.make_step(self._mesh, self.model, self._train, compute)

    def _shapes(self) -> step.TrainState:
        return step.abstract_state(self.model, self._train, self._compute)


def cases(sizes: Sizes) -> Iterator[Case]:
    """Take steps of the full preset with as many layers as fit."""
    options = sizes.preset("full")
    bench = Bench(options, options.model, sizes.rows, sizes.steps)
    for change in _WAYS[:1] if sizes.cpu else _WAYS:
        compute = options.compute.model_copy(update=change)
        model = _deepest(options.model, _BYTES[compute.layers], bench.limit)
        if model != bench.model:
            bench = Bench(options, model, sizes.rows, sizes.steps)
        layers = f"{model.vlm.depth} of {options.model.vlm.depth} layers"
        yield f"{layers}, {_in_words(compute)}", partial(bench.measured, compute)


def lora_cases(sizes: Sizes) -> Iterator[Case]:
    """Take steps of preset lora, whole, with batches that grow until they do not fit."""
    try:
        options = sizes.preset("lora")
    except UsageError as error:
        raise NotHere(f"this checkout has no preset lora: {error}") from None
    for rows in (sizes.rows,) if sizes.cpu else _LORA_ROWS:
        compute = options.compute.model_copy(update={"layers": "looped"})
        bench = Bench(options, options.model, rows, sizes.steps)
        yield f"batch {rows}, {_in_words(compute)}", partial(bench.measured, compute)


def _deepest(model: ModelConfig, bytes_a_parameter: float, limit: float) -> ModelConfig:
    """Return a model with the most layers that fit into so many bytes; with one, if none do."""
    cuts = (cut(model, depth) for depth in range(model.vlm.depth, 0, -1))
    return next((one for one in cuts if bytes_a_parameter * tree.count(one) <= limit), cut(model, 1))


def _in_words(compute: ComputeConfig) -> str:
    return f"{compute.layers}, recomputing {compute.recompute}, attention {compute.attention}"
