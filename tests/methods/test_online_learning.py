"""Methods raise the known reward of a small task, and best-of-n has the KL of its formula.

The campaign over all methods and five seeds is ``tests/campaigns/online.py``; this is its small version.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses
from jaxalign.data.trees import Tree
from jaxalign.methods import best_of_n
from jaxalign.methods.collect import Sampler
from tests.campaigns.online import run_method
from tests.methods import online_task as task


@pytest.mark.learning
@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo", "online_dpo"])
def test_the_true_reward_rises_and_the_policy_stays_near(method):
    results = [run_method(method, seed, iterations=12) for seed in (0, 3)]
    gains = [round(x["after"] - x["before"], 3) for x in results]
    print(f"{method}: gains {gains}, KL {[round(x['kl'], 2) for x in results]}")
    assert all(x["after"] - x["before"] > 0.05 for x in results)
    assert all(0 < x["kl"] < 6 for x in results)


@pytest.mark.thorough
def test_best_of_n_costs_the_kl_of_its_formula():
    """Completions of two tokens: the policy's 256 probabilities are known, and what best-of-4 draws is counted."""
    n, groups, prompt = 4, 10_000, task.PROMPTS[5]
    params = task.MODEL.init(jax.random.key(0))
    rewards = np.random.default_rng(0).permutation(256)  # no ties
    first = jax.nn.log_softmax(task.MODEL.logits(params, prompt[None])[0, -1])
    texts = jnp.concatenate([jnp.tile(prompt, (16, 1)), jnp.arange(16)[:, None]], axis=1)
    logps = np.asarray(first[:, None] + jax.nn.log_softmax(task.MODEL.logits(params, texts)[:, -1])).reshape(-1)

    sample = Sampler(task.MODEL, n, 2, ())
    drawn = np.zeros((groups, n), int)
    for part in range(5):
        ids = np.arange(part * groups // 5, (part + 1) * groups // 5)
        trees = sample(params, [prompt] * len(ids), jax.random.key(1), ids)
        drawn[ids] = [[16 * int(c[0]) + int(c[1]) for c in tree.completions] for tree in trees]
    scores = rewards[drawn].astype(np.float64)
    both = zip(drawn, scores, strict=True)
    trees = [Tree.of(prompt, [[outcome // 16, outcome % 16] for outcome in row], scores=s) for row, s in both]
    chosen = [16 * int(t.completions[0][0]) + int(t.completions[0][1]) for t in best_of_n.best_of(trees, n)]

    share = np.bincount(chosen, minlength=256) / groups
    used = share > 0
    plug_in = np.sum(share[used] * (np.log(share[used]) - logps[used]))
    counted = plug_in - (used.sum() - 1) / (2 * groups)  # Miller and Madow's correction
    order = np.argsort(rewards)
    upper = np.cumsum(np.exp(logps[order].astype(np.float64)))
    lower = np.concatenate([[0], upper[:-1]])
    won = upper**n - lower**n
    exact = np.sum(won * (np.log(won) - logps[order]))  # with atoms
    formula = float(losses.best_of_n_kl(n))
    print(f"counted {counted:.4f}, exact {exact:.4f}, formula {formula:.4f}")
    assert abs(counted - exact) < 0.03
    assert exact <= formula
    assert formula - exact < 0.08  # what the atoms take
