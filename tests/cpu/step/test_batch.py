import random

import numpy as np

from legokv.step.batch import PageTables, Piece, step_batch, visible

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


def request_table(first_page, num_cached, num_own):
    """Cached pages, the last half full, a copied part behind them and own pages."""
    numbers = range(first_page, first_page + num_cached + num_own)
    filled = [16] * (num_cached - 1) + [9] + [16] * num_own
    starts = np.cumsum([0, *filled[:-1]])
    return np.array([(n, 0, s, f) for n, s, f in zip(numbers, starts, filled, strict=True)])


def end_of(table, num_own):
    return int(table[-num_own, 2])


def test_kept_tables_are_those_that_are_made_anew_whoever_comes_and_goes():
    dice, tables, checked = random.Random(0), PageTables(), 0
    running = []
    for number in range(400):
        if len(running) < 2 or (len(running) < 6 and dice.random() < 0.1):
            table = request_table(100 * number, dice.randint(1, 9), 4).astype(np.int32)
            running.insert(dice.randrange(len(running) + 1), [table, dice.randint(0, 20)])
        pieces = [piece(range(last, last + dice.choice([1, 1, 1, 7])), t) for t, last in running]
        if dice.random() < 0.2:
            pieces.pop(dice.randrange(len(pieces)))
        batch = step_batch(pieces, tables)
        assert np.array_equal(batch.pages, step_batch(pieces).pages)
        assert batch.pages.flags.c_contiguous
        checked += len(pieces)
        ends = {id(each.table): int(each.positions[-1]) + 1 for each in pieces}
        running = [[t, ends.get(id(t), last)] for t, last in running]
        running = [each for each in running if each[1] < each[0][-1, 2] + 8]
    assert checked > 1000


def test_of_a_sequence_that_decodes_a_table_s_row_is_read_when_a_page_is_full():
    tables = PageTables()
    both = [request_table(page, 2000, 3).astype(np.int32) for page in (0, 5000)]
    start = end_of(both[0], 3)
    step_batch([piece([start], table) for table in both], tables)
    assert tables.num_rows_read == 2 * 2003
    for position in range(start + 1, start + 40):
        batch = step_batch([piece([position], table) for table in both], tables)
    assert batch.pages[1, -1].tolist() == [7002, 0, start + 32, 8]
    # At the end of two pages, of each table the two or one that are not full.
    assert tables.num_rows_read == 2 * (2003 + 3 + 2)


def test_who_leaves_or_comes_has_no_other_s_table_read_again():
    tables = PageTables()
    first, second, third = (
        request_table(page, 2000, 3).astype(np.int32) for page in (0, 5000, 9000)
    )
    start = end_of(first, 3)
    step_batch([piece([start], first), piece([start], second)], tables)
    batch = step_batch([piece([start + 1], second)], tables)
    assert batch.pages[0, 0, 0] == 5000
    assert tables.num_rows_read == 2 * 2003
    batch = step_batch([piece([start], third), piece([start + 2], second)], tables)
    assert batch.pages[:, -1].tolist() == [[11000, 0, start, 1], [7000, 0, start, 3]]
    assert tables.num_rows_read == 3 * 2003


def test_a_sequence_that_begins_again_is_seen_from_the_first():
    tables, table = PageTables(), request_table(0, 3, 2).astype(np.int32)
    step_batch([piece(range(50), table)], tables)
    again = [piece(range(20), table)]
    assert np.array_equal(step_batch(again, tables).pages, step_batch(again).pages)
