"""Prompts to tokens: PaliGemma's SentencePiece file when one is given, else a small one that this module trains.

The small tokenizer (tiny_tokenizer.model beside this file) is remade by `python -m pi05.data.tokenizer`. It knows each
word of the six sentences and each of the 257 state numbers as one token, and printable ASCII besides. Special ids are
PaliGemma's.
"""

import io
import re
import string
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Bool, Float, Int

from pi05 import tasks
from pi05.errors import DataError

BINS = 256
NUMBERS = range(-1, BINS)
"""Bin indices of a normalised state; np.digitize gives -1 below the range, and the last one above it."""
TINY = Path(__file__).with_name("tiny_tokenizer.model")
_PAD, _EOS, _BOS, _UNK = 0, 1, 2, 3
_EDGES = np.linspace(-1, 1, BINS + 1)[:-1]


class Tokenizer:
    """A SentencePiece model and the prompt form of Pi0.5.

    Args:
        model: The serialised SentencePiece model.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise DataError(f"the tokenizer file of {len(model)} bytes is not a SentencePiece model") from error

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a SentencePiece file."""
        try:
            return cls(path.read_bytes())
        except DataError as error:
            raise DataError(f"{path}: {error}; fetch it again") from error
        except FileNotFoundError as error:
            raise DataError(f"no tokenizer at {path}") from error
        except OSError as error:
            raise DataError(f"the tokenizer {path} cannot be read ({error.strerror})") from error

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._processor.vocab_size()

    def encode(self, prompts: Sequence[str], length: int) -> tuple[Int[np.ndarray, "b t"], Bool[np.ndarray, "b t"]]:
        """Return BOS and the prompts' tokens, padded to `length`, and which of them exist.

        Raises:
            DataError: A prompt is longer; nothing is ever cut, because the state stands at a prompt's end.
        """
        tokens = np.full((len(prompts), length), _PAD, np.int32)
        mask = np.zeros((len(prompts), length), bool)
        for row, words in enumerate(self._processor.encode(list(prompts))):
            ids = [self._processor.bos_id(), *words]
            if len(ids) > length:
                raise DataError(f"the prompt {prompts[row]!r} takes {len(ids)} tokens, more than the {length} allowed")
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return tokens, mask

    def longest(self, sentences: Sequence[str], numbers: int) -> int:
        """Return how many tokens, BOS included, the longest prompt of some sentences can have.

        Args:
            sentences: Instructions.
            numbers: How many a state in the prompt has; 0: it is not in the prompt.

        A number costs the same wherever it stands, so the longest state repeats the costliest of NUMBERS: any in the
        small tokenizer, where each is one token, and one of three digits in PaliGemma's, which spells them digit by
        digit. There are no other numbers: however far noise carries a state, its bin is -1 or 255.
        """
        states = [[number] * numbers for number in NUMBERS] if numbers else [[]]
        texts = [_text(sentence, state) for sentence in sentences for state in states]
        return 1 + max(map(len, self._processor.encode(texts)))

    @cached_property
    def number_tokens(self) -> Int[np.ndarray, " n"]:
        """Ids of the tokens of NUMBERS; raise DataError when a number is not one token of its own."""
        ids = [self._processor.piece_to_id(_piece(number)) for number in NUMBERS]
        if self._processor.unk_id() in ids:
            raise DataError(
                "this tokenizer spells state numbers with several tokens; train.number_embedding=fourier needs the "
                "small tokenizer (train.tokenizer left out)"
            )
        return np.array(ids)


def prompts(sentences: Sequence[str], states: Float[np.ndarray, "b d"] | None) -> list[str]:
    """Return the prompt of each sample, one sentence each; `states` are normalised and not padded, or left out."""
    if states is None:
        return [_text(sentence, ()) for sentence in sentences]
    bins = (np.digitize(states, _EDGES) - 1).tolist()
    return [_text(sentence, row) for sentence, row in zip(sentences, bins, strict=True)]


def _text(sentence: str, bins: Sequence[int]) -> str:
    """Return one prompt; without numbers it has no state."""
    task = sentence.strip().replace("_", " ").replace("\n", " ")
    state = f"State: {' '.join(map(str, bins))};" if bins else ""
    return f"Task: {task}, {state}\nAction: "


def train_tiny() -> bytes:
    """Train the small tokenizer on the six sentences; the same bytes every time."""
    texts = [f"Task: {task.sentence}, State: ;Action: " for task in tasks.TASKS.values()]
    words = sorted({word for text in texts for word in re.findall(r"[A-Za-z]+", text)})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=512,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n", "Action", *map(_piece, [*NUMBERS, *words])],
        required_chars=string.digits + string.ascii_letters + string.punctuation,
        pad_id=_PAD,
        eos_id=_EOS,
        bos_id=_BOS,
        unk_id=_UNK,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _piece(word: str | int) -> str:
    """Return how a word or number after a space is spelled in SentencePiece."""
    return f"▁{word}"


if __name__ == "__main__":
    TINY.write_bytes(train_tiny())
