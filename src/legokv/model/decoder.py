"""A Llama-family decoder over ragged tokens. How keys and values are kept is not its matter."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legokv.model.config import ModelConfig

Attention = Callable[[int, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(layer, q [T, H, D], k [T, G, D], v [T, G, D], pool) -> (out [T, H, D], pool).

`layer` is the layer's number, its kind `ModelConfig.layers[layer]`; q and k are not rotated.
"""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


class Linear(nn.Linear):
    """nn.Linear, and what its result is added to."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        result = super().forward(x)
        return result if residual is None else residual + result


class Gate(nn.Module):
    """silu(gate) * up [T, N] of x [T, 2 * N]: a row's gates, then its ups."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up


class Layer(nn.Module):
    """Attention and gated MLP, each behind a norm and added to the residual stream [T, hidden]."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.number = number
        hidden, eps = config.hidden_size, config.norm_eps
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.head_size = config.head_size
        self.attention_norm: nn.Module = RMSNorm(hidden, eps)
        self.qkv = Linear(hidden, sum(self.heads) * config.head_size, bias=config.qkv_bias)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if config.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(config.head_size, eps) for _ in range(2))
        self.out = Linear(config.num_heads * config.head_size, hidden, bias=config.out_bias)
        self.mlp_norm: nn.Module = RMSNorm(hidden, eps)
        self.gate_up = Linear(hidden, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.gate: nn.Module = Gate()
        self.down = Linear(config.intermediate_size, hidden, bias=config.mlp_bias)
        # In place of all behind attention, where something computes it at once.
        self.tail: nn.Module | None = None

    def attend(self, x: Tensor, pool: Tensor, attention: Attention) -> tuple[Tensor, Tensor]:
        """What attention gives [T, H, D], and the pool after."""
        qkv = self.qkv(self.attention_norm(x)).view(-1, sum(self.heads), self.head_size)
        q, k, v = qkv.split(self.heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return attention(self.number, q, k, v, pool)

    def forward(self, x: Tensor, pool: Tensor, attention: Attention) -> tuple[Tensor, Tensor]:
        attended, pool = self.attend(x, pool, attention)
        attended = attended.flatten(1)
        if self.tail is not None:
            return self.tail(attended, x), pool
        x = self.out(attended, x)
        return self.down(self.gate(self.gate_up(self.mlp_norm(x))), x), pool


class Decoder(nn.Module):
    """Embedding, layers, final norm and head; `forward` returns logits of the asked rows only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, n) for n in range(config.num_layers))
        self.norm: nn.Module = RMSNorm(config.hidden_size, config.norm_eps)
        self.head: nn.Module | None = None
        if not config.tied_embeddings:
            self.head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, input_ids: Tensor, logit_rows: Tensor, pools: Sequence[Tensor], attention: Attention
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits float32 [B, V] of `logit_rows` [B] of `input_ids` [T], and the pools after."""
        logits, pools_after = self.head_logits(input_ids, logit_rows, pools, attention)
        return logits.to(torch.float32), pools_after

    def head_logits(
        self, input_ids: Tensor, logit_rows: Tensor, pools: Sequence[Tensor], attention: Attention
    ) -> tuple[Tensor, list[Tensor]]:
        """`forward`, but the logits are as the last product makes them, in the weights' type."""
        x = self.embed(input_ids)
        pools_after = []
        for layer, pool in zip(self.layers, pools, strict=True):
            x, pool = layer(x, pool, attention)
            pools_after.append(pool)
        rows = self.norm(x.index_select(0, logit_rows))
        head = self._tied_head if self.head is None else self.head
        logits: Tensor = head(rows)
        return logits, pools_after

    def _tied_head(self, rows: Tensor) -> Tensor:
        assert isinstance(self.embed, nn.Embedding), "a head in blocks is not tied"
        return F.linear(rows, self.embed.weight)

    def attend_first(
        self, num_layers: int, input_ids: Tensor, pools: Sequence[Tensor], attention: Attention
    ) -> None:
        """Run `input_ids` [T] up to the attention of layer `num_layers`, counted from 1."""
        x = self.embed(input_ids)
        for layer, pool in zip(self.layers[: num_layers - 1], pools, strict=False):
            x, _ = layer(x, pool, attention)
        last = self.layers[num_layers - 1]
        assert isinstance(last, Layer), "a decoder's layers are all of one class"
        last.attend(x, pools[num_layers - 1], attention)


def decoder_from_weights(config: ModelConfig, weights: dict[str, Tensor]) -> Decoder:
    """The decoder around `weights` (names of its own state dict), which it shares, not copies."""
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder.load_state_dict(weights, strict=True, assign=True)
    return decoder.requires_grad_(False).eval()
