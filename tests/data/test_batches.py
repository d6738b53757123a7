"""Batches are a pure function of (data, seed, step); every example comes once an epoch; evaluation sees each once."""

import itertools

import numpy as np
import pytest

from jaxalign.data.batches import attach, batches, evaluation_batches, mixed_batches
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError

FIELDS = ("tokens", "branch", "position", "example", "source", "target", "owner", "mask", "last", "example_mask")


def some_trees(count=21):
    random = np.random.default_rng(5)
    sizes = random.integers(1, 9, (count, 3))
    return [
        Tree.of(random.integers(1, 99, p), [random.integers(1, 99, c), random.integers(1, 99, d)]) for p, c, d in sizes
    ]


def drawn(packed):
    """Which examples are in a batch, sorted."""
    return sorted(packed.rows.extras["index"][packed.rows.example_mask][:, 0].tolist())


def same(a, b):
    return a.used == b.used and all(np.array_equal(getattr(a.rows, f), getattr(b.rows, f)) for f in FIELDS)


def test_a_step_is_a_pure_function_of_seed_and_step():
    made = some_trees()
    first, second, other = (
        batches(made, batch_size=4, seed=1),
        batches(made, batch_size=4, seed=1),
        batches(made, seed=2),
    )
    order = [17, 0, 3, 17, 12]
    assert all(same(first[step], second[step]) for step in order)
    assert [drawn(first[step]) for step in range(5)] != [drawn(other[step]) for step in range(5)]


def test_every_epoch_has_every_example_in_a_new_order():
    made = some_trees(20)
    source = batches(made, batch_size=4, seed=0)
    assert source.steps_per_epoch == 5
    epochs = [[drawn(source[5 * epoch + i]) for i in range(5)] for epoch in range(3)]
    assert all(sorted(itertools.chain(*epoch)) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_continues_into_the_next_epoch():
    made = some_trees(21)
    source = batches(made, batch_size=4)
    taken = list(itertools.chain(*(drawn(source[step]) for step in range(21))))
    assert np.bincount(taken).tolist() == [4] * 21
    assert len(drawn(batches(made, batch_size=50)[0])) == 50  # a batch larger than the data


def test_iterating_from_a_step_is_indexing():
    source = batches(some_trees(), batch_size=4)
    resumed = list(itertools.islice(source.iterate(start=7), 6))
    assert all(same(batch, source[7 + i]) for i, batch in enumerate(resumed))
    assert len(list(source.iterate(2, 5))) == 3
    assert same(next(iter(source)), source[0])


def test_shapes_do_not_depend_on_the_step():
    source = batches(some_trees(), batch_size=8, rows_per_microbatch=2)
    seen = [source[step].rows for step in range(20)]
    assert {rows.tokens.shape[:2] for rows in seen} == {(4, 2)}
    assert {(rows.tokens.shape[-1], rows.source.shape[-1]) for rows in seen} <= set(source.shapes)


def test_evaluation_sees_every_example_once_in_order():
    made = some_trees(21)
    evaluation = evaluation_batches(made, batch_size=4)
    assert len(evaluation) == 6
    assert [drawn(batch) for batch in evaluation] == [list(range(i, min(i + 4, 21))) for i in range(0, 21, 4)]


def test_what_was_computed_once_finds_its_example():
    made = some_trees()
    scores = np.random.default_rng(0).normal(size=(len(made), 2)).astype(np.float32)
    rows = batches(attach(made, ref=scores), batch_size=8)[3].rows
    index = rows.extras["index"][rows.example_mask][:, 0]
    assert np.array_equal(rows.extras["ref"][rows.example_mask], scores[index])
    with pytest.raises(ValueError, match="20 entries for 21 trees"):
        attach(made, ref=scores[:20])


def test_a_mixture_draws_by_weight_whatever_the_sizes():
    few, many = some_trees(5), some_trees(40)
    source = mixed_batches([few, many], [1, 3], batch_size=8, seed=3)
    drawn_of_few = [sum(i < 5 for i in drawn(source[step])) for step in range(50)]
    assert drawn_of_few == [2] * 50  # not only on average
    taken = np.bincount(list(itertools.chain(*(drawn(source[step]) for step in range(50)))), minlength=45)
    assert set(taken[:5]) == {20}
    assert set(taken[5:]) == {7, 8}  # 300 draws from 40: seven epochs and a half
    again = mixed_batches([few, many], [0.5, 1.5], batch_size=8, seed=3)
    assert all(same(source[step], again[step]) for step in (9, 0, 4))
    other = mixed_batches([few, many], [1, 3], batch_size=8, seed=4)
    assert [drawn(source[step]) for step in range(3)] != [drawn(other[step]) for step in range(3)]
    assert same(mixed_batches([many], [2], batch_size=8)[3], batches(many, batch_size=8)[3])
    assert source.steps_per_epoch == 45 / 8


def test_data_sets_of_one_size_are_not_drawn_in_one_order():
    source = mixed_batches([some_trees(30), some_trees(30)], [1, 1], batch_size=10)
    assert [i % 30 for i in drawn(source[0]) if i < 30] != sorted(i % 30 for i in drawn(source[0]) if i >= 30)


def test_mixtures_that_cannot_be_drawn():
    trees = some_trees()
    for weights in ([1], [1, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(UserError, match=r"for 2 data sets\. Give one positive number"):
            mixed_batches([trees, trees], weights)
    with pytest.raises(UserError, match="Not all data sets have the field 'margin'"):
        mixed_batches([trees, attach(trees, margin=np.ones(len(trees)))], [1, 1])
    with pytest.raises(UserError, match="list of examples is empty"):
        mixed_batches([trees, []], [1, 1])


def test_mistakes():
    with pytest.raises(UserError, match="list of examples is empty"):
        batches([])
    with pytest.raises(UserError, match="batch_size is 0"):
        batches(some_trees(), batch_size=0)
    with pytest.raises(UserError, match="fits in none of the row shapes"):
        batches(some_trees(), shapes=[(4, 4)])[0]
