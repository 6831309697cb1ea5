"""A batch of more sequences than a plan holds, cut into several."""

from collections.abc import Iterator

from legokv.step.batch import StepBatch


def split_batch(batch: StepBatch, max_sequences: int) -> Iterator[StepBatch]:
    """Batches of at most `max_sequences`, whose logits in turn are the batch's; itself if it fits.

    Sequences of one step do not read what the others write, so they may follow one another.
    """
    num_sequences = len(batch.logit_rows)
    if num_sequences <= max_sequences:
        yield batch
        return
    for first in range(0, num_sequences, max_sequences):
        yield _part(batch, slice(first, min(first + max_sequences, num_sequences)))


def _part(batch: StepBatch, sequences: slice) -> StepBatch:
    starts = batch.query_start[sequences.start : sequences.stop + 1]
    tokens = slice(starts[0], starts[-1])
    return StepBatch(
        input_ids=batch.input_ids[tokens],
        positions=batch.positions[tokens],
        key_positions=batch.key_positions[tokens],
        slots=batch.slots[tokens],
        query_start=starts - starts[0],
        pages=batch.pages[sequences],
        logit_rows=batch.logit_rows[sequences] - starts[0],
    )
