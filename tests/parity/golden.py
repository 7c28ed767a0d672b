"""The golden numbers: what the reference implementation computed on a small random model. Knows no pytest."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pi05.config import GemmaConfig, ModelConfig, OptimizerConfig, TrainConfig, VitConfig
from pi05.model import tree
from pi05.observation import Observation

DEFAULT = Path(__file__).parents[2].parent / "shared/golden/pi05_small"


@dataclass(frozen=True)
class Golden:
    """One set of golden numbers, whatever its sizes."""

    folder: Path
    meta: dict
    params: dict[str, jax.Array]
    inputs: dict[str, jax.Array]
    outputs: dict[str, np.ndarray]

    def model(self) -> ModelConfig:
        return ModelConfig(
            vlm=GemmaConfig(**self.meta["vlm"]),
            expert=GemmaConfig(**self.meta["expert"]),
            vit=VitConfig(**self.meta["vit"]),
            vocab_size=self.meta["vocab_size"],
            action_dim=self.meta["action_dim"],
            action_horizon=self.meta["action_horizon"],
            max_token_len=self.meta["max_token_len"],
            image_size=self.inputs[f"image/{self.meta['image_keys'][0]}"].shape[1],
        )

    def train(self) -> TrainConfig:
        return TrainConfig(
            steps=len(self.inputs["train_noise"]),
            batch_size=self.meta["batch"],
            optimizer=OptimizerConfig(**self.meta["optimizer"]),
            ema_decay=self.meta["ema_decay"],
        )

    def nested(self) -> tree.Params:
        return tree.nest(dict(self.params))

    def observation(self) -> Observation:
        keys = self.meta["image_keys"]
        return Observation(
            images={key: self.inputs[f"image/{key}"] for key in keys},
            image_masks={key: self.inputs[f"image_mask/{key}"] for key in keys},
            tokens=self.inputs["tokens"],
            token_mask=self.inputs["token_mask"],
        )

    def left_out(self) -> Observation:
        """Return the observation without the cameras that no sample has, and without masks where all have one."""
        whole = self.observation()
        present = {name: image for name, image in whole.images.items() if whole.image_masks[name].any()}
        masks = {name: mask for name in present if not (mask := whole.image_masks[name]).all()}
        return replace(whole, images=present, image_masks=masks)

    def padded(self) -> Observation:
        """Return the observation with eight more tokens in every prompt, none of which exist."""
        whole = self.observation()
        more = ((0, 0), (0, 8))
        return replace(whole, tokens=jnp.pad(whole.tokens, more), token_mask=jnp.pad(whole.token_mask, more))


def place() -> Path | None:
    """Return where the golden numbers are, in $PI05_GOLDEN or beside this checkout; None where there are none."""
    folder = Path(os.environ.get("PI05_GOLDEN", DEFAULT))
    return folder if (folder / "meta.json").is_file() else None


def load(folder: Path) -> Golden:
    """Read a set, parameters and inputs onto the default device."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(folder / name) as file:
            return dict(file)

    def onto_device(name: str) -> dict[str, jax.Array]:
        return {key: jnp.asarray(value) for key, value in read(name).items()}

    meta = json.loads((folder / "meta.json").read_text())
    return Golden(folder, meta, onto_device("params.npz"), onto_device("inputs.npz"), read("outputs.npz"))
