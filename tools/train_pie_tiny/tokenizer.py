"""The tokenizer: byte-level BPE with single digits, trained on the task texts."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.train_pie_tiny.mixture import document
from tools.train_pie_tiny.words import SPECIAL_TOKENS, SYLLABLES

VOCAB_SIZE = 640
NUM_DOCUMENTS = 12_000
DRILL_REPEATS = 4_000


def _corpus(seed: int) -> Iterator[str]:
    """Documents without their markers, and a drill that makes each syllable one token early."""
    rng = Random(f"tokenizer:{seed}")
    for syllable in SYLLABLES:
        yield from [syllable] * DRILL_REPEATS
        yield from [syllable.capitalize()] * DRILL_REPEATS
    for _ in range(NUM_DOCUMENTS):
        text = "".join(segment.text for segment in document(rng, step=0).segments)
        for marker in SPECIAL_TOKENS:
            text = text.replace(marker, "\n")
        yield text


def build_tokenizer(seed: int) -> Tokenizer:
    """Trains the tokenizer; any Unicode text round-trips, and no token is added on its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"vocabulary of {tokenizer.get_vocab_size()}, not {VOCAB_SIZE}")
    return tokenizer
