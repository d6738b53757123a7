"""What TRL does not have, against RLax and against float64 NumPy transcriptions of the papers' equations."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import advantages, losses
from jaxalign.logprobs import fused_token_statistics, kl_estimate
from tests.losses.registry import CASES, Case
from tests.parity.loss_checks import Check, against_numpy, relative_error

PAPER = "NumPy float64, "


def log_sigmoid(x):
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


def sigmoid(x):
    return np.exp(log_sigmoid(x))


def inputs(fn, scales=(0.1, 1.0, 3.0)) -> tuple[Case, list[tuple]]:
    """The registry's case of a function, and random batches of its arguments, trained ones first."""
    case = next(case for case in CASES if case.fn is fn)
    return case, [tuple(case.make(seed, scale=scale)) for seed in range(3) for scale in scales]


def check(fn, expected, against, note="", **options) -> Check:
    """A function with its registry's hyper-parameters against a transcription that takes them, too."""

    def run():
        case, batches = inputs(fn)
        first = [i for i in range(len(case.args)) if i in case.trained]
        order = first + [i for i in range(len(case.args)) if i not in first]
        back = np.argsort(order)

        def call(function, *args):
            return function(*[args[i] for i in back], **case.options, **options)

        shuffled = [tuple(batch[i] for i in order) for batch in batches]
        ours, reference = functools.partial(call, fn), functools.partial(call, expected)
        return against_numpy(ours, reference, shuffled, len(first))

    return Check(f"`{fn.__name__}`{note}", PAPER + against, run)


def bco(policy, reference, desirable, delta, *, beta):
    logits = beta * (policy - reference) - delta
    return np.where(desirable, -log_sigmoid(logits), -log_sigmoid(-logits))


def bco_pair(pc, pr, rc, rr, *, beta, delta):
    return -log_sigmoid(beta * (pc - rc) - delta) - log_sigmoid(-(beta * (pr - rr) - delta))


def orpo(chosen, rejected):
    chosen, rejected = np.exp(chosen), np.exp(rejected)
    return -np.log(sigmoid(np.log((chosen / (1 - chosen)) / (rejected / (1 - rejected)))))


def cdpo(pc, pr, rc, rr, *, beta, label_smoothing):
    x = beta * ((pc - rc) - (pr - rr))
    return -(1 - label_smoothing) * log_sigmoid(x) - label_smoothing * log_sigmoid(-x)


def f_dpo_alpha(pc, pr, rc, rr):
    """Table 1: f'(u) = (1 - u^-α) / α, whose α is 1 - α of ours."""
    score = lambda h: (1 - np.exp(h) ** -0.7) / 0.7  # noqa: E731
    return -log_sigmoid(0.1 * (score(pc - rc) - score(pr - rr)))


def plackett_luce(rewards):
    """By brute force: the share of the ranking's probability among all rankings, each a product of choices."""
    out = []
    for row in rewards.reshape(-1, rewards.shape[-1]):
        worth = {}
        for order in itertools.permutations(range(row.size)):
            left, probability = list(order), 1.0
            while left:
                probability *= math.exp(row[left[0]]) / sum(math.exp(row[i]) for i in left)
                left.pop(0)
            worth[order] = probability
        assert math.isclose(sum(worth.values()), 1)
        out.append(-math.log(worth[tuple(range(row.size))]))
    return np.reshape(out, rewards.shape[:-1])


def value_clip(values, old_values, returns, *, clip):
    clipped = old_values + np.clip(values - old_values, -clip, clip)
    return 0.5 * np.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def reinforce(logps, advantages):
    return -advantages * logps


def group_relative(rewards):
    return np.stack([(r - np.mean(r)) / (np.std(r, ddof=1) + 1e-4) for r in rewards])


def leave_one_out(rewards):
    return np.stack([[r[k] - np.mean(np.delete(r, k)) for k in range(r.size)] for r in rewards])


def kl_shaped_rewards(scores, logps, ref_logps, mask, *, beta):
    out = np.where(mask, -beta * (logps - ref_logps), 0)
    for row in np.flatnonzero(mask.any(-1)):
        out[row, np.flatnonzero(mask[row])[-1]] += scores[row]
    return out


def gae(rewards, values, mask, *, gamma, lam):
    out, returns = np.zeros_like(rewards), np.zeros_like(rewards)
    for row in range(len(rewards)):
        advantage = next_value = 0.0
        for t in reversed(np.flatnonzero(mask[row])):
            advantage = rewards[row, t] + gamma * next_value - values[row, t] + gamma * lam * advantage
            next_value = values[row, t]
            out[row, t], returns[row, t] = advantage, advantage + values[row, t]
    return np.stack([out, returns])


def optimal_value(rewards, *, beta):
    return beta * np.log(np.mean(np.exp(rewards / beta), axis=-1))


def stacked_gae(*args, **options):
    return jnp.stack(advantages.gae(*args, **options))


def gae_against_rlax() -> float:
    import rlax

    with jax.enable_x64(True):
        case, batches = inputs(advantages.gae)
        worst = 0.0
        for rewards, values, _ in batches:
            ours, _ = advantages.gae(rewards, values, np.ones(rewards.shape, bool), **case.options)
            discount, lam = np.full(rewards.shape[1], case.options["gamma"]), case.options["lam"]
            discount[-1] = 0
            for row in range(len(rewards)):
                expected = rlax.truncated_generalized_advantage_estimation(
                    jnp.asarray(rewards[row]), jnp.asarray(discount), lam, jnp.append(values[row], 0.0)
                )
                worst = max(worst, relative_error(ours[row], expected))
        return worst


def clip_against_rlax() -> float:
    import rlax

    with jax.enable_x64(True):
        _, batches = inputs(losses.ppo_clip)
        worst = 0.0
        for logps, old_logps, advantage in batches:
            functions = (
                lambda x, *rest: jnp.mean(losses.ppo_clip(x, *rest)),
                lambda x, old, a: rlax.clipped_surrogate_pg_loss(jnp.exp(x - old).reshape(-1), a.reshape(-1), 0.2),
            )
            args = [jnp.asarray(x) for x in (logps, old_logps, advantage)]
            (ours, slope), (expected, their_slope) = (jax.value_and_grad(f)(*args) for f in functions)
            worst = max(worst, relative_error(ours, expected), relative_error(slope, their_slope))
        return worst


def kl_against_sum(estimator: str) -> float:
    """On all tokens, weighted by the policy: unbiased estimates give the divergence itself."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 40))
    p, q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    with jax.enable_x64(True):
        got = jnp.sum(jnp.exp(p) * kl_estimate(jnp.asarray(p), jnp.asarray(q), estimator=estimator))
    r = q - p
    expected = {"k1": np.sum(np.exp(p) * -r), "k2": np.sum(np.exp(p) * r**2 / 2), "k3": np.sum(np.exp(p) * -r)}
    return relative_error(got, expected[estimator])


def best_of_n() -> float:
    """KL of the best of n among many equally likely samples, exactly; log n - (n-1)/n is its limit."""
    worst = 0.0
    for n in (1, 2, 4, 16):
        number = 10**6
        rank = np.arange(1, number + 1) / number
        chosen = rank**n - (rank - 1 / number) ** n
        with jax.enable_x64(True):
            limit = losses.best_of_n_kl(n)
        exact = np.sum(chosen * np.log(np.maximum(chosen * number, 1e-300)))
        worst = max(worst, abs(float(limit) - exact))
    return worst


def adaptive_kl() -> float:
    """Ziegler et al.'s update by hand over a run of measurements."""
    with jax.enable_x64(True):
        beta, state, worst = 0.2, losses.KLState(jnp.asarray(0.2)), 0.0
        for kl in (1.0, 5.9, 6.1, 30.0, 0.0):
            beta *= 1 + 0.1 * float(np.clip((kl - 6.0) / 6.0, -0.2, 0.2))
            state = losses.adaptive_kl(state, kl, target=6.0)
            worst = max(worst, relative_error(state.beta, beta))
        return worst


def sum_of_squares() -> float:
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(5, 4)), rng.normal(size=(4, 30))
    with jax.enable_x64(True):
        got = fused_token_statistics(hidden, head, np.zeros(5, int), chunk_size=7).log_sum_sq_probs
    probs = np.exp(hidden @ head)
    probs /= probs.sum(-1, keepdims=True)
    return relative_error(got, np.log(np.sum(probs**2, -1)))


def whiten() -> float:
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(3, 5)) * 3 + 1, rng.random((3, 5)) < 0.6
    with jax.enable_x64(True):
        got = advantages.whiten(x, mask)
    valid = x[mask]
    return relative_error(got, np.where(mask, (x - valid.mean()) / np.sqrt(valid.var() + 1e-8), 0))


def cdpo_check() -> Check:
    case, _ = inputs(losses.dpo)
    batches = [tuple(case.make(seed, scale=3.0)) for seed in range(5)]
    options = {"beta": 0.1, "label_smoothing": 0.2}
    ours, expected = (functools.partial(f, **options) for f in (losses.dpo, cdpo))
    return Check(
        "`dpo` with `label_smoothing`",
        PAPER + "Mitchell 2023, eq. 3",
        lambda: against_numpy(ours, expected, batches, 2),
    )


def alpha_check() -> Check:
    case, _ = inputs(losses.dpo)
    batches = [tuple(case.make(seed, scale=2.0)) for seed in range(5)]
    divergence = functools.partial(losses.alpha_divergence, alpha=0.3)
    ours = functools.partial(losses.dpo, beta=0.1, divergence=divergence)
    return Check(
        "`dpo` with `alpha_divergence`",
        PAPER + "arXiv:2309.16240, table 1",
        lambda: against_numpy(ours, f_dpo_alpha, batches, 2),
    )


def gae_check() -> Check:
    case, batches = inputs(advantages.gae)
    ours, expected = (functools.partial(f, **case.options) for f in (stacked_gae, gae))
    against = PAPER + "arXiv:1506.02438, eq. 16"
    return Check("`gae` with holes", against, lambda: against_numpy(ours, expected, batches, 2))


CHECKS = [
    cdpo_check(),
    alpha_check(),
    check(losses.bco_pair, bco_pair, "arXiv:2404.04656", " with δ"),
    check(losses.bco, bco, "arXiv:2404.04656"),
    check(losses.simper, lambda a_c, a_r: np.exp(a_r) - np.exp(a_c), "arXiv:2502.00883"),
    check(losses.orpo, orpo, "arXiv:2403.07691, eqs. 4 and 7"),
    check(losses.plackett_luce, plackett_luce, "all rankings by brute force"),
    check(losses.value_clip, value_clip, "OpenAI baselines, ppo2"),
    check(losses.reinforce, reinforce, "Williams 1992"),
    check(losses.optimal_value, optimal_value, "arXiv:2505.20686"),
    check(advantages.group_relative, group_relative, "arXiv:2402.03300, sec. 4.1.2"),
    check(advantages.leave_one_out, leave_one_out, "Kool et al. 2019"),
    check(advantages.kl_shaped_rewards, kl_shaped_rewards, "arXiv:1909.08593, eq. 2"),
    gae_check(),
    Check("`gae`", "`rlax.truncated_generalized_advantage_estimation`", gae_against_rlax),
    Check("`ppo_clip`", "`rlax.clipped_surrogate_pg_loss`", clip_against_rlax),
    Check("`whiten`", PAPER + "(x - mean) / √(var + 1e-8)", whiten),
    Check("`kl_estimate`, `k1`", PAPER + "Σ p log(p/q)", functools.partial(kl_against_sum, "k1")),
    Check("`kl_estimate`, `k2`", PAPER + "Σ p r²/2", functools.partial(kl_against_sum, "k2")),
    Check("`kl_estimate`, `k3`", PAPER + "Σ p log(p/q)", functools.partial(kl_against_sum, "k3")),
    Check("`fused_token_statistics`, log Σ p²", PAPER + "log Σ p²", sum_of_squares),
    Check("`adaptive_kl`", PAPER + "arXiv:1909.08593, sec. 2.2", adaptive_kl),
    Check("`best_of_n_kl`", "the best of n among 10⁶ samples, absolutely", best_of_n, 1e-4),
]
