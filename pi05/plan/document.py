"""What a plan says of a training, as frozen pydantic models: the program that compiles prints one, pi05ctl reads it.

All of it is about one optimizer step and one GPU, unless its name says otherwise. Knows pydantic and no JAX.
"""

from typing import Annotated, Literal

from pydantic import Field

from pi05.config import Natural, Positive, Section

NO_COMPILER = 69
"""What the program that compiles exits with where JAX's CUDA plugin is not installed."""
Amount = Annotated[float, Field(ge=0)]


class Needs(Section):
    """Bytes that one GPU needs.

    Attributes:
        parameters, moments, averages, batch: What lies there between two steps: weights, the optimizer's moments, the
            averaged weights, and the next batch.
        temporary: What a step needs besides: activations that are kept, gradients, gathered weights.
    """

    parameters: Natural
    moments: Natural
    averages: Natural
    batch: Natural
    temporary: Natural

    @property
    def state(self) -> int:
        """Bytes that a checkpoint's copy takes as long as it is not written."""
        return self.parameters + self.moments + self.averages

    @property
    def total(self) -> int:
        """Bytes of all of it."""
        return self.state + self.batch + self.temporary


class Times(Section):
    """Seconds of a step, none of which a real GPU falls below.

    Attributes:
        compute, memory: Of the kernels that arithmetic binds, and of those that memory binds.
        launches: Of starting them all.
        wire: Of what GPUs send each other.
        step: In all, when wire and kernels overlap as the program has them; of an estimate, as programs usually do.
    """

    compute: Amount
    memory: Amount
    launches: Amount
    wire: Amount
    step: Amount


class Plan(Section):
    """What a training needs and costs.

    Attributes:
        how: `compiled`: read from the program that would run. `estimated`: computed from sizes.
        chip, gpus, nodes: On what: so many nodes of so many GPUs.
        batch_size, steps: Of the run.
        tokens: Length of a prompt.
        tokens_known: Whether the tokenizer was asked; otherwise it is assumed to spell as PaliGemma's does.
        memory: Bytes that JAX takes of a GPU.
        needs: Bytes by kind.
        flops, model_flops: That are done, and that the mathematics asks for (pi05.model.flops).
        traffic: Bytes that kernels read and write.
        kernels: That are started.
        wire: Bytes that a GPU sends.
        network: Bytes that a node sends to others.
        times: Seconds.
    """

    v: Literal[1] = 1
    how: Literal["compiled", "estimated"]
    chip: str
    gpus: Positive
    nodes: Positive
    batch_size: Positive
    steps: Positive
    tokens: Positive
    tokens_known: bool
    memory: Positive
    needs: Needs
    flops: Natural
    model_flops: Natural
    traffic: Natural
    kernels: Natural
    wire: Natural
    network: Natural
    times: Times

    @property
    def fits(self) -> bool:
        """Whether a step has room."""
        return self.needs.total <= self.memory

    @property
    def copies(self) -> bool:
        """Whether a checkpoint's copy has room beside a step; without it training waits while one is written."""
        return self.needs.total + self.needs.state <= self.memory

    @property
    def samples_per_second(self) -> float:
        """Of the whole run, at most."""
        return self.batch_size / self.times.step

    @property
    def hours(self) -> float:
        """Of all steps, at least."""
        return self.steps * self.times.step / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return self.hours * self.gpus * self.nodes
