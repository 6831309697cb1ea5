import numpy as np

from legokv.step.batch import Piece, step_batch, visible

TABLE = np.array([[7, 0, 0, 16], [3, 16, 16, 9], [5, 0, 25, 16], [6, 0, 41, 16]], np.int32)


def piece(positions, table=TABLE):
    numbers = np.array(positions, np.int32)
    return Piece(numbers + 100, numbers, numbers + 200, numbers + 300, table)


def test_a_step_sees_slots_up_to_its_last_position_and_no_page_past_it():
    assert visible(TABLE, 27).tolist() == [[7, 0, 0, 16], [3, 16, 16, 9], [5, 0, 25, 3]]
    assert visible(TABLE, 3).tolist() == [[7, 0, 0, 4]]


def test_a_table_is_not_changed_by_looking_at_it():
    before = TABLE.copy()
    visible(TABLE, 27)
    assert (before == TABLE).all()


def test_pieces_stand_one_after_another_and_the_last_row_of_each_has_logits():
    batch = step_batch([piece([25, 26, 27]), piece([5], TABLE[:1])])
    assert batch.query_start.tolist() == [0, 3, 4]
    assert batch.logit_rows.tolist() == [2, 3]
    assert batch.input_ids.tolist() == [125, 126, 127, 105]
    assert batch.key_positions.tolist() == [225, 226, 227, 205]
    assert batch.slots.tolist() == [325, 326, 327, 305]


def test_a_shorter_table_is_padded_with_rows_of_no_filled_slot():
    batch = step_batch([piece([25, 26, 27]), piece([5], TABLE[:1])])
    assert batch.pages.shape == (2, 3, 4)
    assert batch.pages[1].tolist() == [[7, 0, 0, 6], [0, 0, 0, 0], [0, 0, 0, 0]]
