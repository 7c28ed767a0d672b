"""The loss over episodes that training never sees, of the weights a policy uses: always on the same noise and time.

Neither the images are augmented nor the states disturbed, so it is no loss of a training step; it compares with itself,
from look to look and, for one dataset, from run to run. Knows nothing of which episodes are kept apart.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from pi05 import sharding
from pi05.config import TrainJob
from pi05.data.batches import Loader
from pi05.model import device, flow, tree
from pi05.training import processes
from pi05.training.step import Batch, TrainState, loss_and_sums, policy_params, state_sharding

_KEY = 0
"""Of noise and time, whatever the run's seed is: a run that goes on with another one still compares with itself."""


class HeldOut:
    """Looks at the held-out loss of one training.

    Args:
        job: What was asked for.
        loader: Has the episodes.
        mesh: Devices.
    """

    def __init__(self, job: TrainJob, loader: Loader, mesh: Mesh) -> None:
        self._train, self._loader, self._place = job.train, loader, sharding.batch_sharding(mesh)
        self._loss = _make_loss(job, mesh)
        self._compiled = False

    def due(self, done: int) -> bool:
        """Return whether there is anything to look at after so many steps."""
        look = done % self._train.held_out_every == 0 or done == self._train.steps
        return look and self._loader.held_out_batches > 0

    def look(self, state: TrainState) -> float:
        """Return the loss over all batches, however long that takes; of several processes all take part."""
        losses = [self._one(state, number) for number in range(self._loader.held_out_batches)]
        return math.fsum(map(float, jax.device_get(losses))) / len(losses)

    def _one(self, state: TrainState, number: int) -> Array:
        samples = self._loader.held_out(number)
        batch = sharding.place_rows(Batch(samples.observation, samples.actions, samples.real), self._place)
        if not self._compiled:
            processes.compile_together(self._loss, state, batch, np.int32(number))
            self._compiled = True
        return self._loss(state, batch, np.int32(number))


def _make_loss(job: TrainJob, mesh: Mesh) -> Callable[[TrainState, Batch, np.int32], Float[Array, ""]]:
    """Return the compiled loss of one batch, given its number."""
    compute = device.resolve(job.compute, job.model, mesh.devices.flat[0])

    def loss(state: TrainState, batch: Batch, number: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(_KEY), number)
        noise, time = flow.draw(key, batch.actions.shape)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return loss_and_sums(tree.nest(policy_params(state)), job.model, compute, batch, noise[None], time[None])[0]

    return jax.jit(
        loss,
        in_shardings=(
            state_sharding(mesh, job.model, job.train, job.compute),
            sharding.batch_sharding(mesh),
            sharding.replicated(mesh),
        ),
        out_shardings=sharding.replicated(mesh),
        compiler_options=device.xla_options(compute, mesh.devices.flat[0]),
    )
