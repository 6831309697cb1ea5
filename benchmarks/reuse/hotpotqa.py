"""HotpotQA questions (arXiv 1809.09600), each over its ten passages, each passage a chunk."""

import random
from typing import Any

from benchmarks.reuse.download import read_json
from benchmarks.reuse.prompt import Prompt
from benchmarks.reuse.wording import worded
from legokv.text.tokenizer import Tokenizer


def prompts(tokenizer: Tokenizer, num_cases: int) -> list[Prompt]:
    """The first `num_cases` of the development set in a seeded order; passages as they come."""
    questions = read_json("hotpotqa.json")
    random.Random(0).shuffle(questions)
    return [_prompt(tokenizer, question) for question in questions[:num_cases]]


def _prompt(tokenizer: Tokenizer, entry: dict[str, Any]) -> Prompt:
    passages = [f"Passage: {title}. {''.join(lines)}\n" for title, lines in entry["context"]]
    return worded(tokenizer, entry["_id"], passages, entry["question"], (entry["answer"],))
