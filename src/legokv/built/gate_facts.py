"""What engine.json records about the check of linked against full logits. No torch here."""

from dataclasses import dataclass

from legokv.errors import EngineMismatch, exact

# By the engine's type, in standard deviations of the full logits; docs/compiling.md has what
# sound models measured. What is broken is off by about 1.
TOLERANCES = {"float32": 0.002, "float16": 0.05, "bfloat16": 0.25}


@dataclass(frozen=True)
class GateFacts:
    """How far linked logits are from those of the same tokens computed in full, without a cache.

    Differences are the largest of all logits, in standard deviations of the full ones: with every
    chunk recomputed, and of one chunk with its question, for both of which linking is exact.
    Judged by `tolerance`; None where a logit was not finite. The KLs to full, in nats, of k = 0 and
    k = 16 over several chunks are what linking costs this model on one small text: recorded only.
    `attention` is the CPU's form they were computed by, whose rounding is in all of them; None in
    an engine that was built before it was recorded. `kl_weights` is the KL to the engine's own
    weights before they were rounded to blocks, of the tokens in full; None where they were not, or
    were and gave what is not finite.
    """

    tolerance: float
    recomputed_difference: float | None
    one_chunk_difference: float | None
    kl_link_0: float | None
    kl_link_16: float | None
    attention: str | None = None
    kl_weights: float | None = None

    @property
    def passed(self) -> bool:
        """Whether both differences are numbers within the tolerance."""
        differences = (self.recomputed_difference, self.one_chunk_difference)
        return all(value is not None and value <= self.tolerance for value in differences)

    def __str__(self) -> str:
        recomputed, one_chunk = (
            _beside(self.tolerance, value)
            for value in (self.recomputed_difference, self.one_chunk_difference)
        )
        return (
            f"with all chunks recomputed logits differ by {recomputed}, with one chunk by "
            f"{one_chunk} standard deviations; {exact(self.tolerance)} is allowed"
            f"{self._computed_by}"
        )

    @property
    def _computed_by(self) -> str:
        return "" if self.attention is None else f" (computed with attention {self.attention})"

    @property
    def cost(self) -> str:
        """What linking several chunks costs this model on the check's text, in words."""
        weights = (
            ""
            if self.kl_weights is None
            else f"; rounded weights cost a KL to the unrounded of {_shown(self.kl_weights)} nats"
        )
        return (
            f"linking its chunks costs a KL to full of {_shown(self.kl_link_0)} nats at k = 0, "
            f"{_shown(self.kl_link_16)} at k = 16{weights}"
        )


def check_gate(gate: GateFacts | None, engine: str) -> None:
    """EngineMismatch, with the numbers, unless the engine's check is there and was passed."""
    if gate is None:
        raise EngineMismatch(f"{engine} was never checked: build the engine again")
    if not gate.passed:
        raise EngineMismatch(
            f"{engine} failed the check of linked against full logits and is not served: {gate}"
        )


def _beside(tolerance: float, difference: float | None) -> str:
    """In few digits, unless these hide that it is past the tolerance."""
    short = _shown(difference)
    if difference is not None and difference > tolerance >= float(short):
        return exact(difference)
    return short


def _shown(difference: float | None) -> str:
    return "what is not finite" if difference is None else f"{difference:.4g}"
