"""A training step with what is masked left out, beside the published form that computes it and masks it.

Same weights, same batch, same machine, in turn: three camera slots of which two exist, a prompt of 200 slots of which a
ManiSkill task fills about 50. Both forms give the same loss (asserted here, and by tests/parity for every output).

    scripts/bench train_step
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from pi05.config import FLOAT32, GemmaConfig, ModelConfig, OptimizerConfig, TrainConfig, VitConfig
from pi05.model import flow, tree
from pi05.observation import Observation
from pi05.training import step

GEMMA = GemmaConfig(width=128, depth=4, mlp_dim=256, num_heads=4, num_kv_heads=1, head_dim=32)
MODEL = ModelConfig(
    vlm=GEMMA,
    expert=GEMMA,
    vit=VitConfig(width=128, depth=4, mlp_dim=256, num_heads=4),
    vocab_size=512,
)
TRAIN = TrainConfig(steps=100, batch_size=4, optimizer=OptimizerConfig(warmup_steps=10))
CAMERAS, PROMPT, RUNS = ("base", "left_wrist", "right_wrist"), 50, 5


def observation() -> Observation:
    """Return a batch in the published form: the third camera missing, the prompt padded to 200."""
    random, rows = np.random.default_rng(0), TRAIN.batch_size
    shape = (rows, MODEL.image_size, MODEL.image_size, 3)
    return Observation(
        images={name: random.integers(0, 256, shape, dtype=np.uint8) for name in CAMERAS},
        image_masks={name: np.full(rows, name != "right_wrist") for name in CAMERAS},
        tokens=random.integers(0, MODEL.vocab_size, (rows, MODEL.max_token_len), dtype=np.int32),
        token_mask=np.broadcast_to(np.arange(MODEL.max_token_len) < PROMPT, (rows, MODEL.max_token_len)).copy(),
    )


def left_out() -> Observation:
    """Return the same batch as the project makes it: no third camera, and a prompt as long as it has to be."""
    whole = observation()
    images = {name: whole.images[name] for name in CAMERAS if whole.image_masks[name].any()}
    length = -(-PROMPT // 8) * 8
    return Observation(images, {}, whole.tokens[:, :length], whole.token_mask[:, :length])


def prepared(what: Observation) -> Callable[[], float]:
    """Return a function that takes one step and returns its loss; compiled here."""
    shape = (TRAIN.batch_size, MODEL.action_horizon, MODEL.action_dim)
    noise, time_ = flow.draw(jax.random.key(0), shape)
    params = {path: jax.numpy.asarray(array) for path, array in tree.initial(MODEL, 0).items()}
    state = step.new_state(params, MODEL, TRAIN, FLOAT32)
    batch = step.Batch(what, np.zeros(shape, np.float32), np.ones(shape, bool))
    update = jax.jit(partial(step.update, model=MODEL, train=TRAIN, compute=FLOAT32))

    def run() -> float:
        return float(jax.block_until_ready(update(state, batch, noise[None], time_[None]))[1]["loss"])

    run()
    return run


def seconds(run: Callable[[], float]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure both forms in turn and print their ratio."""
    masked, short = prepared(observation()), prepared(left_out())
    np.testing.assert_allclose(short(), masked(), rtol=1e-5)
    pairs = [(seconds(masked), seconds(short)) for _ in range(RUNS)]
    slow, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"masked {slow:.2f} s, left out {fast:.2f} s a step of {TRAIN.batch_size} samples on {jax.devices()[0]}")
    ratio = statistics.median(one / other for one, other in pairs)
    print(json.dumps({"name": "train_step", "ratio": round(ratio, 2), "seconds": round(fast, 3)}))


if __name__ == "__main__":
    main()
