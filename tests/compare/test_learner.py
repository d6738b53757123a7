"""The testbed has one token per word and a million parameters, and fitted curves recover their coefficients."""

import jax
import numpy as np
import pytest

from jaxalign.compare import measure
from jaxalign.testbed import learner
from jaxalign.testbed.world import make_world


def test_every_word_is_one_token():
    world = make_world()
    tokenizer = learner.make_tokenizer(world)
    for tree in learner.draw_corpus(tokenizer, world, 200, np.random.default_rng(0)):
        assert tokenizer.unk_token_id not in np.concatenate([tree.prompt, *tree.completions])
        assert tree.prompt[0] == tokenizer.bos_token_id
        assert tree.completions[0][-1] == tokenizer.eos_token_id
        assert len(tree.completions[0]) <= learner.MAX_ANSWER_TOKENS


def test_a_million_parameters():
    model = learner.make_model(learner.make_tokenizer(make_world()))
    assert 1e6 < sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(model.param_shapes())) < 2e6


def test_fitted_curves_recover_their_coefficients():
    d = np.linspace(0.1, 3, 20)
    alpha, beta = measure.fit_curve(d**2, d * (2.0 - 0.7 * np.log(d)), online=True)
    assert (alpha, beta) == pytest.approx((2.0, 0.7))
    assert np.isnan(measure.fit_curve([0.0], [1.0], online=True)).all()
