"""Completions of another prompt: another text, wherever truncation cut it."""

import numpy as np

from jaxalign.data.batches import evaluation_batches
from jaxalign.data.kinds import UnpairedPreference
from jaxalign.data.mismatched import Mismatched
from jaxalign.data.tokenize import tokenize_completions


def test_a_prompt_that_was_cut_elsewhere_is_still_the_same_prompt(byte_level):
    long = "Why is the sky blue and the grass green? " * 3
    records = [UnpairedPreference(long, " Air." * n, True, "text") for n in (1, 9)]
    records += [UnpairedPreference("Who?", " Me.", False, "text")]
    trees, _ = tokenize_completions(records, byte_level, max_length=40)
    assert not np.array_equal(trees[0].prompt, trees[1].prompt), "the answers leave it different room"
    assert trees[0].prompt_key == trees[1].prompt_key != trees[2].prompt_key
    source = Mismatched(evaluation_batches(trees, batch_size=3), trees, trees)
    for step in range(20):
        for example in (0, 1):
            assert np.array_equal(source.mismatched_tree(step, example).completions[0], trees[2].completions[0])
