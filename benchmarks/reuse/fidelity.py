"""How near each method comes to full recompute, teacher-forced over the gold answer."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.reuse import kv_error
from benchmarks.reuse.attention_probe import AttentionProbe
from benchmarks.reuse.head_mass import head_mass
from benchmarks.reuse.linked_model import LinkedModel
from benchmarks.reuse.methods import METHODS, Method, share_recomputed
from benchmarks.reuse.prompt import Prompt

METRICS = ("kl", "top1", "nll", "delta_nll")
WITH_KV_ERROR = ("naive", "legolink-16", "cacheblend-15")
WITH_HEAD_MASS = ("full", "naive", "legolink-2", "legolink-16")


def measure(
    model: LinkedModel, prompt: Prompt, methods: Sequence[Method]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(method, numbers) for each of `methods`, one after another."""
    case = _Case(model, prompt)
    for method in methods:
        yield method.name, case.numbers(method)


class _Case:
    """One prompt with full recompute's logits, keys and values, which all others are held to."""

    def __init__(self, model: LinkedModel, prompt: Prompt) -> None:
        model.clear()
        self._model = model
        self._prompt = prompt
        self._lengths = [len(segment) for segment in prompt.segments]
        self._kv: kv_error.PromptKV | None = None
        self._full, self._about_full = self._run(METHODS["full"])

    def numbers(self, method: Method) -> dict[str, Any]:
        if method.name == "full":
            logits, about = self._full, self._about_full
        else:
            logits, about = self._run(method)
        return {**compare(logits, self._full, self._prompt.answer), **about}

    def _run(self, method: Method) -> tuple[Tensor, dict[str, Any]]:
        """log-probabilities float32 [answer tokens, V], and what else is to be said."""
        model, prompt = self._model, self._prompt
        num_answer = len(prompt.answer)
        # The last answer token predicts nothing that is scored.
        placed = method.place(model, prompt, prompt.answer[:-1])
        try:
            probe = None
            if method.name in WITH_HEAD_MASS:
                probe = AttentionProbe(model, placed, len(prompt.question), num_answer - 1)
            logits = model.compute(placed, num_answer, probe)
            about: dict[str, Any] = {"share": share_recomputed(placed)}
            if probe is not None:
                about["head_mass"] = head_mass(probe.by_layer, self._lengths)
            if method.name == "full":
                self._kv = kv_error.gather(model, placed)
            elif method.name in WITH_KV_ERROR:
                assert self._kv is not None, "full recompute runs first"
                found = kv_error.gather(model, placed)
                about["kv_error"] = kv_error.errors(found, self._kv, self._lengths)
        finally:
            model.release(placed)
        return F.log_softmax(logits, -1), about


def compare(found: Tensor, full: Tensor, answer: Sequence[int]) -> dict[str, float]:
    """Means over the answer's tokens; log-probabilities [answer tokens, V] of a method and of full.

    kl: KL(full || method) in nats; top1: share of rows with the same most likely token; nll: of the
    gold, in nats a token; delta_nll: its rise over full.
    """
    gold = torch.tensor(answer)[:, None]
    nll, full_nll = (-rows.gather(1, gold).mean().item() for rows in (found, full))
    return {
        "kl": (full.exp() * (full - found)).sum(1).mean().item(),
        "top1": (found.argmax(1) == full.argmax(1)).float().mean().item(),
        "nll": nll,
        "delta_nll": nll - full_nll,
    }
