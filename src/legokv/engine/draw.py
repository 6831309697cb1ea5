"""Tokens drawn of many rows of logits at once, on whatever device these lie.

Only ids, and which rows are no numbers, come to the host. A row's token is the same alone and in
any company: no sum runs over more than one row, nor in an order that the batch decides. Where the
CPU library is at hand it draws the tokens on CPUs, from the logits where they lie; torch's form
here is its reference.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from legokv.engine.native_draw import drawn_rows
from legokv.engine.sampling import Draw
from legokv.errors import NotFinite
from legokv.kernels.native_library import NativeLibrary

_BLOCK = 64
"""Tokens whose largest logit, or whose sum of weights, is looked at first."""
_WIDTHS = (64, 256)
"""How many of the likeliest tokens are looked for; mostly the others have no say."""
_PART_BYTES = 1 << 22
"""Of the rows in float64 that a CPU takes through all steps together: what its caches hold."""

Drawn = int | Exception
"""A token, or why none could be drawn."""

log = logging.getLogger(__name__)


def draw_each(
    logits: Tensor, draws: Sequence[Draw], library: NativeLibrary | None = None
) -> list[Drawn]:
    """The tokens drawn together, or one by one if that fails: it is one's fault, not all's."""
    if not draws:
        return []
    try:
        return draw_tokens(logits, draws, library)
    except Exception:
        log.exception("tokens could not be drawn together")
    return [_drawn_alone(logits, draw, library) for draw in draws]


def _drawn_alone(logits: Tensor, draw: Draw, library: NativeLibrary | None) -> Drawn:
    try:
        return draw_tokens(logits, [draw], library)[0]
    except Exception as error:
        log.exception("a token could not be drawn")
        return error


@torch.inference_mode()
def draw_tokens(
    logits: Tensor, draws: Sequence[Draw], library: NativeLibrary | None = None
) -> list[Drawn]:
    """A token for each of `draws`, from its row of `logits` float32 [R, V].

    By the library logits may be bfloat16, too.
    NotFinite in its place, and nothing is drawn, if a logit of the row is NaN or infinite with
    what the draw changes of it, whatever its options are.
    """
    if library is not None and logits.device.type == "cpu":
        ids = drawn_rows(library, logits, draws)
        return [
            _error_of(logits[draw.row]) if token_id < 0 else token_id
            for token_id, draw in zip(ids, draws, strict=True)
        ]
    drawn: list[Drawn] = [0] * len(draws)
    for places in _parts(logits, draws):
        tokens = _draw_part(logits, [draws[place] for place in places])
        for place, token in zip(places, tokens, strict=True):
            drawn[place] = token
    return drawn


def check_finite(logits: Tensor) -> None:
    """NotFinite, with how many, if any of `logits` [V] is NaN or infinite."""
    if bool(logits.isfinite().all()):
        return
    num_nan, num_infinite = int(logits.isnan().sum()), int(logits.isinf().sum())
    raise NotFinite(
        f"of {len(logits)} logits for the next token {num_nan} are NaN and {num_infinite} "
        "infinite: the prompt or the weights overflow the type that is computed in; ask something "
        "else, or try the setting dtype float32"
    )


@dataclass(frozen=True, order=True)
class _Kind:
    """Draws of one kind go through the same steps. `width` 0: all tokens are looked at."""

    is_changed: bool
    is_restricted: bool
    is_greedy: bool
    has_top_p: bool
    width: int


def _kind(draw: Draw) -> _Kind:
    options = draw.options
    is_restricted = bool(draw.banned) or draw.allowed is not None
    is_greedy = not options.temperature
    has_top_p = options.top_p < 1 and not is_greedy
    count = options.top_k or (_WIDTHS[-1] if has_top_p else 0)
    width = next((few for few in _WIDTHS if 0 < count <= few), 0)
    return _Kind(bool(draw.changes), is_restricted, is_greedy, has_top_p, 0 if is_greedy else width)


def _parts(logits: Tensor, draws: Sequence[Draw]) -> Iterator[list[int]]:
    """Places of draws of one kind, as many as are computed together."""
    most = len(draws)
    if logits.device.type == "cpu":
        most = max(1, _PART_BYTES // (8 * logits.shape[1]))
    kinds = [_kind(draw) for draw in draws]
    order = sorted(range(len(draws)), key=lambda place: (kinds[place], draws[place].row))
    for _, group in groupby(order, key=kinds.__getitem__):
        places = list(group)
        for first in range(0, len(places), most):
            yield places[first : first + most]


def _draw_part(logits: Tensor, part: Sequence[Draw]) -> list[Drawn]:
    """Tokens of draws of one kind."""
    values = _changed(logits, part)
    # A sum may be infinite also where no logit is.
    errors = {
        place: _error_of(values[place])
        for place, is_sure in enumerate(values.sum(-1).isfinite().tolist())
        if not is_sure and not values[place].isfinite().all()
    }
    good = [place for place in range(len(part)) if place not in errors]
    if not good:
        return [errors[place] for place in range(len(part))]
    if errors:
        values = values[good]
    draws = [part[place] for place in good]
    ids = iter(_draw_finite(values, draws).tolist())
    return [errors[place] if place in errors else next(ids) for place in range(len(part))]


def _error_of(row: Tensor) -> Exception:
    try:
        check_finite(row)
    except NotFinite as error:
        return error
    raise AssertionError("a row without a token has logits that are not finite")


def _changed(logits: Tensor, part: Sequence[Draw]) -> Tensor:
    """The draws' rows [r, V], with what they change of them in float64; maybe a view."""
    rows = [draw.row for draw in part]
    if rows == list(range(rows[0], rows[0] + len(rows))):
        values = logits[rows[0] : rows[0] + len(rows)]
    else:
        values = logits[rows]
    if not part[0].changes:
        return values
    values = values.to(torch.float64)
    changes = [draw.changes for draw in part]
    starts = [place * values.shape[1] for place in range(len(part))]
    at = _joined([c.ids + start for c, start in zip(changes, starts, strict=True)], logits)
    bias, divisor, penalty = (
        _joined([getattr(c, name) for c in changes], logits)
        for name in ("bias", "divisor", "taken")
    )
    flat = values.view(-1)
    before = flat[at] + bias
    flat[at] = torch.where(before > 0, before / divisor, before * divisor) - penalty
    return values


def _joined(arrays: Sequence[NDArray[np.generic]], like: Tensor) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(like.device)


def _draw_finite(values: Tensor, part: Sequence[Draw]) -> Tensor:
    """Ids int64 [r] drawn from finite `values` [r, V]."""
    kind = _kind(part[0])
    if kind.is_restricted:
        values = _restricted(values, part)
    spare = -values.shape[1] % _BLOCK
    if spare:
        values = F.pad(values, (0, spare), value=-torch.inf)
    peaks = _in_blocks(values).amax(-1)
    if kind.is_greedy:
        return _place_of_most(values, peaks)
    rows = _Rows.of(values, peaks, part)
    if kind.width == 0:
        return rows.draw_of_all(kind)
    return rows.draw_of_few(kind)


def _restricted(values: Tensor, part: Sequence[Draw]) -> Tensor:
    """A copy of `values` in which what must not come is as unlikely as can be."""
    allowed = np.ones(values.shape, np.bool_)
    for place, draw in enumerate(part):
        if draw.allowed is not None:
            allowed[place] = draw.allowed
        allowed[place, list(draw.banned)] = False
    return values.masked_fill(torch.from_numpy(~allowed).to(values.device), -torch.inf)


def _place_of_most(values: Tensor, peaks: Tensor) -> Tensor:
    """The first place of each row's largest value."""
    block = peaks.argmax(-1)
    return block * _BLOCK + _of_block(values, block).argmax(-1)


def _of_block(values: Tensor, block: Tensor) -> Tensor:
    """[r, _BLOCK] of one block of each row."""
    return _in_blocks(values)[torch.arange(len(block), device=block.device), block]


def _in_blocks(values: Tensor) -> Tensor:
    """[r, V / _BLOCK, _BLOCK]."""
    return values.reshape(len(values), -1, _BLOCK)


@dataclass(frozen=True)
class _Rows:
    """Rows to draw from at a temperature: values [r, V], each block's largest, options [r, 1]."""

    values: Tensor
    peaks: Tensor
    most: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    place: Tensor

    @classmethod
    def of(cls, values: Tensor, peaks: Tensor, part: Sequence[Draw]) -> "_Rows":
        def column(numbers: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.tensor(numbers, dtype=dtype, device=values.device)[:, None]

        size = values.shape[1]
        return cls(
            values,
            peaks,
            peaks.amax(-1, keepdim=True).to(torch.float64),
            column([draw.options.temperature for draw in part]),
            column([min(draw.options.top_k or size, size) for draw in part], torch.int64),
            column([draw.options.top_p for draw in part]),
            column([draw.options.min_p for draw in part]),
            column([draw.place for draw in part]),
        )

    def of_rows(self, chosen: Tensor) -> "_Rows":
        """Of these rows alone."""
        return _Rows(**{name: value[chosen] for name, value in vars(self).items()})

    def weights(self, values: Tensor) -> Tensor:
        """float64, the largest of a row being 1."""
        weights = values.to(torch.float64, copy=True)
        return weights.sub_(self.most).div_(self.temperature).exp_()

    def draw_of_few(self, kind: _Kind) -> Tensor:
        """Ids [r], where top_k or top_p mostly keeps at most `kind.width` tokens."""
        ids, values = _likeliest(self.values, self.peaks, kind.width)
        ordered = values.topk(min(kind.width, values.shape[1]), dim=-1).values
        num_kept = self.top_k.clamp(max=ordered.shape[1])
        is_enough = torch.ones_like(num_kept, dtype=torch.bool)
        if kind.has_top_p:
            by_k = torch.where(_ranks(ordered) < num_kept, self.weights(ordered), 0.0)
            shares = by_k.cumsum(-1)
            whole = shares[:, -1:]
            if bool((self.top_k > kind.width).any()):
                everything = _block_sums(self.weights(self.values)).cumsum(-1)[:, -1:]
                whole = torch.where(self.top_k > kind.width, everything, whole)
            reached = self.top_p * whole
            is_enough = (shares[:, -1:] >= reached) | (self.top_k <= kind.width)
            num_kept = torch.minimum((shares < reached).sum(-1, keepdim=True) + 1, num_kept)
        kept = _largest(values, ordered.gather(-1, num_kept - 1), num_kept)
        drawn = ids.gather(-1, self._drawn_of(self._weights_of(values, kept))[:, None])[:, 0]
        lacking = (~is_enough[:, 0]).nonzero()[:, 0]
        if len(lacking):
            drawn[lacking] = self.of_rows(lacking).draw_of_all(kind)
        return drawn

    def draw_of_all(self, kind: _Kind) -> Tensor:
        """Ids [r], whatever is kept."""
        size = self.values.shape[1]
        if not kind.has_top_p and bool((self.top_k == size).all()):
            return self._drawn_of(self._weights_of(self.values))
        ordered = _descending(self.values)
        num_kept = self.top_k
        if kind.has_top_p:
            by_k = torch.where(_ranks(ordered) < num_kept, self.weights(ordered), 0.0)
            shares = by_k.cumsum(-1)
            reached = self.top_p * shares[:, -1:]
            num_kept = torch.minimum((shares < reached).sum(-1, keepdim=True) + 1, num_kept)
        kept = _largest(self.values, ordered.gather(-1, num_kept - 1), num_kept)
        return self._drawn_of(self._weights_of(self.values, kept))

    def _weights_of(self, values: Tensor, kept: Tensor | None = None) -> Tensor:
        """Weights of what is kept, and of it of what min_p keeps; 0 of all else."""
        weights = self.weights(values)
        if kept is not None:
            weights = torch.where(kept, weights, 0.0)
        if bool((self.min_p > 0).any()):
            weights = torch.where(weights >= self.min_p, weights, 0.0)
        return weights

    def _drawn_of(self, weights: Tensor) -> Tensor:
        """The place [r] in each row of `weights` float64 that the random number chooses.

        The candidates stand in order of their ids, so that logits which differ by rounding give
        the same token but at the edges of its share.
        """
        shares = _block_sums(weights).cumsum(-1)
        aim = self.place * shares[:, -1:]
        block = _first_past(shares, aim)
        before = F.pad(shares, (1, 0)).gather(-1, block)
        inner = _of_block(weights, block[:, 0]).cumsum(-1)
        return (block * _BLOCK + _first_past(inner, aim - before))[:, 0]


def _block_sums(weights: Tensor) -> Tensor:
    return _in_blocks(weights).sum(-1)


def _first_past(shares: Tensor, aim: Tensor) -> Tensor:
    """The first place [r, 1] where growing `shares` pass `aim`, the last that adds to them at most.

    A product that rounds up to the whole sum is past the end.
    """
    return torch.minimum((shares <= aim).sum(-1), (shares < shares[:, -1:]).sum(-1))[:, None]


def _ranks(ordered: Tensor) -> Tensor:
    return torch.arange(ordered.shape[1], device=ordered.device)


def _likeliest(values: Tensor, peaks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ids, ascending, and values [r, n] of a few tokens that have the `count` likeliest in them."""
    num_rows, num_blocks = peaks.shape
    if num_blocks <= count:
        return _ranks(values).expand(values.shape), values
    # As many blocks have the largest values in them; of equal ones the first.
    least = peaks.topk(count, dim=-1).values[:, -1:]
    chosen = _largest(peaks, least, torch.full_like(least, count, dtype=torch.int64))
    blocks = chosen.nonzero()[:, 1].view(num_rows, count, 1)
    within = torch.arange(_BLOCK, device=values.device)
    ids = (blocks * _BLOCK + within).flatten(1)
    return ids, values.gather(-1, ids)


def _largest(values: Tensor, least: Tensor, count: Tensor) -> Tensor:
    """The `count` [r, 1] largest, of which `least` [r, 1] is the last; of equal ones the first."""
    above, equal = values > least, values == least
    num_wanted = count - above.sum(-1, keepdim=True)
    if bool((equal.sum(-1, keepdim=True) == num_wanted).all()):
        return above | equal
    return above | (equal & (equal.cumsum(-1) <= num_wanted))


def _descending(values: Tensor) -> Tensor:
    """Each row in descending order."""
    if values.device.type != "cpu":
        return values.sort(dim=-1, descending=True).values
    # A tenth of the time of torch's, which sorts the places too.
    return torch.from_numpy(np.sort(values.numpy(), axis=-1)).flip(-1)
