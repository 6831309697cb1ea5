"""Essays cut into chunks of 512 tokens; the "question" and the "answer" are what follows."""

import random

from benchmarks.reuse.download import read_json
from benchmarks.reuse.prompt import Prompt
from legokv.text.tokenizer import Tokenizer

NUM_CHUNKS = 4
CHUNK_TOKENS = 512
QUESTION_TOKENS = 32
ANSWER_TOKENS = 32
_CHARACTERS = 16_000
"""Enough text for a case: 2,112 tokens at under 7 characters each."""


def prompts(tokenizer: Tokenizer, num_cases: int) -> list[Prompt]:
    """Windows that do not overlap, in a seeded order."""
    text = read_json("PaulGrahamEssays.json")["text"]
    starts = list(range(0, len(text) - _CHARACTERS, _CHARACTERS))
    random.Random(0).shuffle(starts)
    return [_prompt(tokenizer, text, start) for start in starts[:num_cases]]


def _prompt(tokenizer: Tokenizer, text: str, start: int) -> Prompt:
    ids = tuple(tokenizer.encode(text[start : start + _CHARACTERS]))
    end = NUM_CHUNKS * CHUNK_TOKENS
    chunks = tuple(ids[at : at + CHUNK_TOKENS] for at in range(0, end, CHUNK_TOKENS))
    question = ids[end : end + QUESTION_TOKENS]
    answer = ids[end + QUESTION_TOKENS : end + QUESTION_TOKENS + ANSWER_TOKENS]
    return Prompt(f"essay-{start}", (), chunks, question, answer)
