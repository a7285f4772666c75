"""The benchmark of the step runs, and what it divides by is counted."""

from benchmarks.training_step import Size, rows, seconds


def test_step_is_timed_both_ways_and_its_arithmetic_counted():
    size = Size("tiny", "digits", {"batch_size": 4, "width": 1})
    fast, plain, flop = seconds(size, rounds=2)
    assert len(fast) == len(plain) == 2 and min(fast + plain) > 0
    # Of the preset's own batch of 50 and width of 4 it would be about 8e8.
    assert 1e6 < flop < 1e9


def test_table_has_a_row_for_what_cannot_be_measured():
    found = list(rows(1, only="mnist preset, GPU, tf32"))
    assert [row.aim for row in found] == ["<= 2 ms"]
