"""From the robot's numbers to the model's and back: one recipe for training and acting, so that they cannot drift.

Order of work: actions relative to the state, quantile normalisation, images to the model's size, prompt with the
discretised state, padding.
Everything is vectorised over a batch and touches no file, clock or device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from pi05.config import ACTION_NAMES, Convention, ModelConfig
from pi05.data.images import fit_all
from pi05.data.stats import DataStats, NormStats
from pi05.data.tokenizer import Tokenizer, prompts
from pi05.errors import ConfigError, DataError
from pi05.observation import Observation

_EPSILON = 1e-6
_MULTIPLE = 8
"""Prompt lengths are rounded up to a multiple of this, which GPUs prefer."""

State = Float[np.ndarray, "b d"]
Chunk = Float[np.ndarray, "b h 8"]
Images = UInt8[np.ndarray, "b h w 3"]


@dataclass(frozen=True)
class DeltaJoints:
    """Joint targets relative to the state at the chunk's start; the gripper stays absolute."""

    joints: int = len(ACTION_NAMES) - 1

    def apply(self, state: State, actions: Chunk) -> Chunk:
        """Return relative actions."""
        return self._shift(actions, -state)

    def invert(self, state: State, actions: Chunk) -> Chunk:
        """Return absolute actions."""
        return self._shift(actions, state)

    def _shift(self, actions: Chunk, by: State) -> Chunk:
        shifted = actions.copy()
        shifted[..., : self.joints] += by[:, None, : self.joints]
        return shifted


@dataclass(frozen=True)
class Quantiles:
    """Map the 1 % to 99 % range to [-1, 1]."""

    stats: NormStats

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Normalise the last axis."""
        return (values - self._low) / self._range * 2 - 1

    def invert(self, values: np.ndarray) -> np.ndarray:
        """Undo `apply`."""
        return (values + 1) / 2 * self._range + self._low

    @property
    def _low(self) -> np.ndarray:
        return np.asarray(self.stats.q01)

    @property
    def _range(self) -> np.ndarray:
        return np.asarray(self.stats.q99) - self._low + _EPSILON


@dataclass(frozen=True)
class Recipe:
    """What stands between a dataset or a simulator and the model.

    Attributes:
        model: Sizes to pad to.
        convention: Cameras, state and action form.
        stats: Normalisation statistics.
        tokenizer: Of the model.
        sentence: The instruction of the task it acts on.
        others: Those of the other tasks that are learned together; they count for the prompt's length alone.

    Raises:
        ConfigError: The tokenizer, the actions or a prompt do not fit the model.
    """

    model: ModelConfig
    convention: Convention
    stats: DataStats
    tokenizer: Tokenizer
    sentence: str
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tokenizer.vocab_size > self.model.vocab_size:
            raise ConfigError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, model.vocab_size is {self.model.vocab_size}; "
                "use one that is at least as large"
            )
        if self.model.action_dim < len(ACTION_NAMES):
            raise ConfigError(f"model.action_dim {self.model.action_dim} cannot hold {len(ACTION_NAMES)} actions")
        if self._longest > self.model.max_token_len:
            raise ConfigError(
                f"a prompt of this task takes {self._longest} tokens, model.max_token_len is "
                f"{self.model.max_token_len}; use model.max_token_len={_rounded(self._longest)}"
            )

    @property
    def prompt_length(self) -> int:
        """Tokens that every prompt is padded to, in training and acting: no prompt of any of the tasks is longer.

        One length is one shape: a run compiles its step once, and acting sums in the order that training did.
        """
        return min(_rounded(self._longest), self.model.max_token_len)

    def observe(self, states: State, images: Mapping[str, Images]) -> Observation:
        """Return what the model is given for states of the recipe's own task.

        Args:
            states: Of `normalise_state`.
            images: One array a camera, of any size; those that are no camera of the convention are ignored.
        """
        tokens, mask = self.prompt(states, [self.sentence] * len(states))
        return Observation(self.look(images), {}, tokens, mask)

    def prompt(self, states: State, sentences: Sequence[str]) -> tuple[Int[np.ndarray, "b t"], Bool[np.ndarray, "b t"]]:
        """Return the tokens of each sample's prompt, padded to `prompt_length`, and which of them exist.

        Args:
            states: Of `normalise_state`, with or without noise.
            sentences: The instruction of each sample, one of the recipe's own.
        """
        texts = prompts(sentences, states if self.convention.state_in_prompt else None)
        return self.tokenizer.encode(texts, self.prompt_length)

    def look(self, images: Mapping[str, Images]) -> dict[str, Images]:
        """Return the images of the convention's cameras, of the model's size.

        Raises:
            DataError: A camera is missing.
        """
        if missing := [name for name in self.convention.cameras if name not in images]:
            raise DataError(
                f"images of {', '.join(missing)} are missing, given are {', '.join(images) or 'none'}; "
                f"the policy looks through {', '.join(self.convention.cameras)}"
            )
        return {name: fit_all(images[name], self.model.image_size) for name in self.convention.cameras}

    def normalise_state(self, states: State) -> State:
        """Return states whose usual range is [-1, 1]."""
        return Quantiles(self.stats.state).apply(states)

    def restore_state(self, normalised: State) -> State:
        """Return the states whose `normalise_state` is given."""
        return Quantiles(self.stats.state).invert(normalised)

    def encode_actions(self, states: State, actions: Chunk) -> Float[np.ndarray, "b h a"]:
        """Return normalised actions, padded with zeros to the model's width."""
        normalised = Quantiles(self.stats.actions).apply(relative_actions(self.convention, states, actions))
        padding = self.model.action_dim - normalised.shape[-1]
        return np.pad(normalised, ((0, 0), (0, 0), (0, padding))).astype(np.float32)

    def decode_actions(self, states: State, predicted: Float[np.ndarray, "b h a"]) -> Chunk:
        """Return the robot's actions for what the model predicted at `states` (not normalised)."""
        actions = Quantiles(self.stats.actions).invert(predicted[..., : len(ACTION_NAMES)].astype(np.float64))
        absolute = DeltaJoints().invert(states, actions) if self.convention.delta_joints else actions
        return absolute.astype(np.float32)

    @cached_property
    def _longest(self) -> int:
        numbers = len(self.stats.state.q01) if self.convention.state_in_prompt else 0
        return self.tokenizer.longest((self.sentence, *self.others), numbers)


def _rounded(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE


def relative_actions(convention: Convention, states: State, actions: Chunk) -> Chunk:
    """Return actions as the model predicts them, before normalisation."""
    if states.ndim != 2 or actions.ndim != 3 or len(states) != len(actions):
        raise DataError(f"states {states.shape} and actions {actions.shape} must be (b, d) and (b, h, 8)")
    return DeltaJoints().apply(states, actions) if convention.delta_joints else actions
