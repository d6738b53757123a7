"""Laws of the row layout: nothing lost, nothing straddles, every slot points where it should."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.batches import attach
from jaxalign.data.shapes import choose_shapes
from jaxalign.data.trees import Tree, first_fit_decreasing, pack, packing_report
from jaxalign.errors import UserError
from tests.packing import unpack

token = st.integers(1, 90)


@st.composite
def trees(draw, completions=3):
    count = draw(st.integers(1, 12))
    made = []
    for number in range(count):
        prompt = draw(st.lists(token, min_size=1, max_size=12))
        texts = draw(st.lists(st.lists(token, min_size=1, max_size=6), min_size=1, max_size=completions))
        masks = [draw(st.lists(st.booleans(), min_size=len(t), max_size=len(t))) for t in texts]
        logps = [draw(st.lists(st.floats(-9, 0, width=32), min_size=len(t), max_size=len(t))) for t in texts]
        per_token = {"logps": logps, "place": [range(len(t)) for t in texts]}
        made.append(Tree.of(prompt, texts, masks, per_token, index=number, score=np.arange(len(texts)) + 0.5))
    return made


def same(a: Tree, b: Tree) -> bool:
    pairs = [(a.prompt, b.prompt), *zip(a.completions, b.completions, strict=True), *zip(a.masks, b.masks, strict=True)]
    for name, values in a.token_extras.items():
        pairs += zip(values, b.token_extras[name], strict=True)
    return all(np.array_equal(x, y) for x, y in pairs) and all(
        np.array_equal(a.extras[name], b.extras[name]) for name in a.extras
    )


@given(trees(), st.integers(1, 3), st.sampled_from([(32,), (40, 64), (64, 48, 32)]))
@settings(max_examples=60, deadline=None)
def test_unpacking_gives_the_trees_back(made, rows_per_microbatch, row_lengths):
    packed = pack(made, row_lengths=row_lengths, rows_per_microbatch=rows_per_microbatch)
    back = sorted(unpack(packed), key=lambda tree: int(tree.extras["index"][0]))
    assert len(back) == len(made)
    assert all(map(same, made, back))
    assert packed.rows.tokens.shape[:2] == (-(-len(made) // rows_per_microbatch), rows_per_microbatch)
    assert not packed.rows.example_mask[packed.used :].any()
    assert packed.rows.example_mask[: packed.used].any(axis=(1, 2)).all()


@given(trees(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_every_slot_points_where_it_should(made, rows_per_microbatch):
    rows, _ = pack(made, row_lengths=(32, 64), rows_per_microbatch=rows_per_microbatch, num_completions=3)
    for m, r in np.ndindex(rows.tokens.shape[:2]):
        tokens, branch, position, example = (x[m, r] for x in (rows.tokens, rows.branch, rows.position, rows.example))
        source, target, owner, mask = (x[m, r] for x in (rows.source, rows.target, rows.owner, rows.mask))
        assert not np.concatenate((tokens[example < 0], branch[example < 0], position[example < 0])).any()
        assert not np.concatenate((source[owner < 0], target[owner < 0], mask[owner < 0])).any()
        used = np.nonzero(owner >= 0)[0]
        e, k = owner[used] // 3, owner[used] % 3
        assert np.array_equal(example[source[used]], e)  # its source is in its own tree,
        assert np.all((branch[source[used]] == 0) | (branch[source[used]] == k + 1))  # in the prompt or its own branch,
        for slot, here in zip(used, source[used], strict=True):  # and one position before the token it predicts
            follows = (example == example[here]) & (branch == owner[slot] % 3 + 1) & (position == position[here] + 1)
            assert np.array_equal(tokens[follows], [target[slot]])
            (tree,) = [t for t in made if t.extras["index"][0] == rows.extras["index"][m, r, owner[slot] // 3, 0]]
            place = rows.extras["place"][m, r, slot]  # token extras stand in the slot of their token
            assert position[here] + 1 == len(tree.prompt) + place
            assert rows.extras["logps"][m, r, slot] == tree.token_extras["logps"][owner[slot] % 3][place]
        assert not rows.extras["logps"][m, r][owner < 0].any()
        for number in np.nonzero(rows.example_mask[m, r])[0]:
            in_tree = np.nonzero(example == number)[0]
            assert np.array_equal(in_tree, np.arange(in_tree[0], in_tree[-1] + 1))  # tight, and within one row
            for completion in range(3):
                columns = in_tree[branch[in_tree] == completion + 1]
                root = in_tree[branch[in_tree] == 0][-1]
                assert rows.last[m, r, number, completion] == (columns[-1] if len(columns) else root)


def test_the_picture_of_the_layout():
    # the sky is | blue EOS | a lie EOS, as jaxalign.masking draws it
    rows, used = pack([Tree.of([11, 12, 13], [[14, 2], [15, 16, 2]])], row_lengths=(10,))
    first = {name: getattr(rows, name)[0, 0].tolist() for name in ("tokens", "branch", "position", "example", "source")}
    assert first == {
        "tokens": [11, 12, 13, 14, 2, 15, 16, 2, 0, 0],
        "branch": [0, 0, 0, 1, 1, 2, 2, 2, 0, 0],
        "position": [0, 1, 2, 3, 4, 3, 4, 5, 0, 0],
        "example": [0, 0, 0, 0, 0, 0, 0, 0, -1, -1],
        "source": [2, 3, 2, 5, 6],
    }
    assert rows.target[0, 0].tolist() == [14, 2, 15, 16, 2]
    assert rows.owner[0, 0].tolist() == [0, 0, 1, 1, 1]
    assert rows.last[0, 0, 0].tolist() == [4, 7]
    assert used == 1


@given(trees())
@settings(max_examples=30, deadline=None)
def test_packing_is_deterministic(made):
    first, second = (pack(made, row_lengths=(32, 64)) for _ in range(2))
    assert first.used == second.used
    for name in ("tokens", "branch", "source", "owner", "mask", "last"):
        assert np.array_equal(getattr(first.rows, name), getattr(second.rows, name))


@given(trees())
@settings(max_examples=30, deadline=None)
def test_the_report_counts_what_is_there(made):
    packed = pack(made, row_lengths=(32, 64))
    report = packing_report([packed, packed])
    assert report["tokens"] == 2 * sum(map(len, made))
    assert report["targets"] == 2 * sum(tree.num_targets for tree in made)
    assert report["positions"] == 2 * packed.used * packed.rows.tokens.shape[-1]
    assert list(report["programs"].values()) == [2]
    assert report["positions_per_token"] >= 1


def test_without_a_prompt_the_first_token_is_the_prompt():
    tree = Tree.of([], [[5, 6, 7]], [[True, True, False]])
    assert tree.prompt.tolist() == [5]
    assert tree.completions[0].tolist() == [6, 7]
    assert tree.masks[0].tolist() == [True, False]
    with pytest.raises(ValueError, match="share their first token"):
        Tree.of([], [[5, 6], [7, 8]])
    with pytest.raises(ValueError, match="at least one token"):
        Tree.of([5], [[6], []])


def test_a_tree_longer_than_every_row_says_what_to_do():
    with pytest.raises(UserError, match=r"40 tokens .* Lower max_length"):
        pack([Tree.of(range(1, 31), [range(10)])], row_lengths=(16, 32))


def test_extras_keep_their_type_and_their_fraction():
    made = [Tree.of([1], [[2], [3]], score=np.array([0.25, -1.5]), good=[True, False], index=3)]
    extras = pack(made, row_lengths=(16,)).rows.extras
    assert extras["score"].dtype == np.float32
    assert extras["score"][0, 0, 0].tolist() == [0.25, -1.5]
    assert extras["good"].dtype == bool
    assert extras["index"].dtype == np.int32
    with pytest.raises(ValueError, match="same extras"):
        pack([*made, Tree.of([1], [[2], [3]])], row_lengths=(16,))


def test_token_extras_fit_their_tokens():
    tree = Tree.of([1], [[2, 3], [4]], token_extras={"logps": [[-0.5, -1.5], [-2.5]]}, score=1.0)
    packed = pack([tree], row_lengths=(8,))
    assert packed.rows.extras["logps"][0, 0].tolist() == [-0.5, -1.5, -2.5, 0]
    assert packed.rows.extras["logps"].dtype == np.float32
    assert Tree.of([], [[5, 6]], token_extras={"logps": [[0, -1.0]]}).token_extras["logps"][0].tolist() == [-1.0]
    (more,) = attach([tree], index=[7])
    assert same(tree, more)
    for wrong in ({"logps": [[-0.5], [-2.5]]}, {"logps": [[-0.5, -1.5]]}, {"score": [[0, 0], [0]]}):
        with pytest.raises(ValueError, match="one value per completion token"):
            Tree.of([1], [[2, 3], [4]], token_extras=wrong, score=1.0)
    with pytest.raises(ValueError, match="same extras"):
        pack([tree, Tree.of([1], [[2]], score=1.0)], row_lengths=(16,))


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_first_fit_decreasing_fills_no_bin_beyond_its_room(sizes):
    sizes = np.array(sizes)
    bins = first_fit_decreasing(sizes, (20, 9))
    assert sorted(item for members in bins for item in members) == list(range(len(sizes)))
    assert all(np.all(sizes[members].sum(0) <= (20, 9)) for members in bins)
    assert first_fit_decreasing(sizes, (sizes[:, 0].max() - 1, 9)) is None


@pytest.mark.parametrize(("rows", "size"), [(1, 8), (1, 32), (8, 32)])
def test_chosen_shapes_are_few_hold_everything_and_waste_little(rows, size):
    random = np.random.default_rng(1)
    lengths = np.minimum(random.lognormal([4.8, 3.7, 3.9], [0.8, 0.8, 0.8], (500, 3)) + 2, 700).astype(int)
    made = [Tree.of(np.ones(p, int), [np.ones(c, int), np.ones(d, int)]) for p, c, d in lengths]
    shapes = choose_shapes(made, batch_size=size, rows_per_microbatch=rows)
    assert 1 <= len(shapes) <= 4
    pack(made, shapes=shapes)  # holds all
    draws = [random.permutation(len(made))[:size] for _ in range(20)]
    packed = [pack([made[i] for i in draw], shapes=shapes, rows_per_microbatch=rows) for draw in draws]
    assert packing_report(packed)["positions_per_token"] < 1.35  # padding every tree to the longest: above 3
    assert shapes == choose_shapes(made, batch_size=size, rows_per_microbatch=rows)
