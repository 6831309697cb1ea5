"""Transformers with a dynamic cache, kept and cut to the common prefix of the next prompt."""

import copy
from collections.abc import Sequence

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache
from worker import Place, Prompt, serve


class Transformers:
    """The plain way: one model, one cache of the last prompt, greedy tokens by hand."""

    def __init__(self, place: Place) -> None:
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        torch.set_num_threads(place.num_threads)
        self._model = AutoModelForCausalLM.from_pretrained(place.checkpoint, dtype=torch.bfloat16)
        self._model.eval()
        self._cache = DynamicCache()
        self._cached_ids: list[int] = []

    def prepare(self, prompts: Sequence[Prompt], reuse: str) -> None:
        """Nothing: what it reuses is the cache of the last prompt."""

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], num_tokens: int, reuse: str) -> None:
        ids = [prompt.token_ids for prompt in prompts]
        if len(prompts) > 1:
            self._hold(_shared(ids))
        cache, start = self._reusable(ids)
        rows = torch.tensor([row[start:] for row in ids])
        for _ in range(num_tokens):
            logits = self._model(
                input_ids=rows, past_key_values=cache, use_cache=True, logits_to_keep=1
            ).logits
            rows = logits[:, -1].argmax(-1, keepdim=True)
        if len(prompts) == 1:
            # The last token drawn was never computed, the ones before it are not in the prompt.
            _remove_last(cache, num_tokens - 1)
            self._cached_ids = ids[0]

    def _hold(self, ids: list[int]) -> None:
        """Have `ids` in the kept cache, so that several prompts compute what they share once."""
        if self._cached_ids[: len(ids)] != ids:
            self.generate([Prompt((), tuple(ids))], 1, "prefix")

    def _reusable(self, ids: list[list[int]]) -> tuple[DynamicCache, int]:
        """A cache of what all of `ids` share with the last prompt, and its length.

        One prompt takes the kept cache; several get a copy each.
        """
        common = min(_common(self._cached_ids, row) for row in ids)
        start = min(common, len(ids[0]) - 1)
        _remove_last(self._cache, len(self._cached_ids) - start)
        self._cached_ids = self._cached_ids[:start]
        if start == 0:
            self._cache = DynamicCache()
        if len(ids) == 1:
            return self._cache, start
        cache = copy.deepcopy(self._cache)
        if start:
            cache.batch_repeat_interleave(len(ids))
        return cache, start


def _remove_last(cache: DynamicCache, num_tokens: int) -> None:
    if num_tokens:
        cache.crop(-num_tokens)


def _shared(ids: list[list[int]]) -> list[int]:
    return ids[0][: min(_common(ids[0], row) for row in ids)]


def _common(left: list[int], right: list[int]) -> int:
    pairs = zip(left, right, strict=False)
    same = (number for number, (a, b) in enumerate(pairs) if a != b)
    return next(same, min(len(left), len(right)))


if __name__ == "__main__":
    serve(Transformers)
