"""How much attention the question pays to the first tokens of chunks: the premise of LegoLink."""

import torch
from torch import Tensor

HEAD_TOKENS = (1, 2, 4, 16)


def head_mass(by_layer: list[Tensor], lengths: list[int]) -> dict[str, list[float]]:
    """Share of attention on the first tokens of each chunk but the first, by layer.

    by_layer: float32 [n] each (see `AttentionProbe`); lengths: the chunks' in prompt order.
    "1", "2", "4", "16": that many first tokens; "chunks": all tokens of these chunks; "first": the
    very first token of the prompt, the sink every layer has.
    """
    attention = torch.stack(by_layer)
    starts = [sum(lengths[:n]) for n in range(1, len(lengths))]
    spans = list(zip(starts, lengths[1:], strict=True))
    found = {
        str(count): _on(attention, [(s, s + min(count, n)) for s, n in spans])
        for count in HEAD_TOKENS
    }
    found["chunks"] = _on(attention, [(s, s + n) for s, n in spans])
    found["first"] = attention[:, 0]
    return {name: [round(x, 6) for x in mass.tolist()] for name, mass in found.items()}


def _on(attention: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """By layer, the attention [L, n] that falls on the spans together."""
    return torch.stack([attention[:, start:end].sum(1) for start, end in spans]).sum(0)
