"""A task of a second with a known reward, for tests and campaigns of online methods.

Prompts are two tokens out of 13, completions up to five tokens, and the reward is the share of a completion's tokens
that are even and not its end: an untrained model, which is the SFT model here, gets about a half of that.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign import losses
from jaxalign.loop import init_state, make_step
from jaxalign.methods import experience, grpo, online_dpo, ppo
from jaxalign.methods.collect import Collector, Sampler
from jaxalign.methods.rollouts import Packing, iterate, make_prepare, update
from jaxalign.models.model import Model
from tests import tiny

END, LENGTH, VOCABULARY = 2, 5, 16
PROMPTS = [np.array(pair, np.int32) for pair in itertools.product(range(3, VOCABULARY), repeat=2)]
CONFIG = tiny.config(
    vocab_size=VOCABULARY,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    eos_token_id=END,
    initializer_range=0.3,
)


def true_reward(tree):
    """The known reward of each completion."""
    return [float(np.mean((c % 2 == 0) & (c != END))) for c in tree.completions]


def score(trees, rows):
    del rows
    return np.array([true_reward(tree) for tree in trees])


@dataclasses.dataclass(frozen=True)
class Setting:
    """A method on the task."""

    online: object
    beta: float
    num_completions: int
    batch_size: int
    num_minibatches: int
    epochs: int = 1


MODEL = Model(CONFIG)
SETTINGS = {
    "ppo": lambda target=None: Setting(
        ppo.ppo(
            MODEL,
            controller=losses.fixed_kl
            if target is None
            else functools.partial(losses.adaptive_kl, target=target, gain=0.5),
            value_coefficient=0.5,
        ),
        0.05 if target is None else 0.1,
        1,
        128,
        2,
        2,
    ),
    "grpo": lambda: Setting(grpo.grpo(MODEL), 0.04, 4, 32, 2),
    "rloo": lambda: Setting(grpo.rloo(MODEL), 0.05, 4, 32, 2),
    "dapo": lambda: Setting(grpo.dapo(MODEL), 0.0, 4, 32, 2),
    "online_dpo": lambda: Setting(online_dpo.online_dpo(MODEL, beta=0.1), 0.0, 2, 64, 2),
}
RATE = 1e-3


@functools.cache
def programs(name, live=False, **options):
    """What a method compiles, once for all seeds: (setting, optimiser, packing, step)."""
    setting = SETTINGS[name](**options)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE))
    packing = Packing(MODEL.mesh, (512, 512), setting.num_completions)
    reference = MODEL.init(jax.random.key(0)) if live else None
    step = make_step(setting.online.step, optimizer, start(name, 0, reference=reference, **options))
    return setting, optimizer, packing, step


def start(name, seed, *, reference=None, **options):
    """The state of a seed before the first iteration."""
    setting = SETTINGS[name](**options)
    policy = MODEL.init(jax.random.key(seed))
    params = {"policy": policy, "value": ppo.value_head(MODEL)} if name == "ppo" else policy
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE))
    return init_state(
        params,
        optimizer,
        jax.random.key(1000 + seed),
        method_state=experience.init_state(setting.beta, reference=() if reference is None else reference),
    )


def policy_of(name, params):
    return params["policy"] if name == "ppo" else params


def sampler(num_completions):
    return Sampler(MODEL, num_completions, LENGTH, (END,))


def run(name, seed, iterations, *, state=None, scorer=score, refresh=None, live=False, **options):
    """The iterations of a method from a state, or from the seed's first; ``live``: the reference is in the state."""
    setting, _, packing, step = programs(name, live, **options)
    reference = MODEL.init(jax.random.key(seed))
    if state is None:
        state = start(name, seed, reference=jax.tree.map(jnp.copy, reference) if live else None, **options)
    sample = sampler(setting.num_completions)

    def draw(params, prompts, key, ids):
        return sample(policy_of(name, params), prompts, key, ids)

    collect = Collector(draw, {"true": (1.0, scorer)}, PROMPTS, [{}] * len(PROMPTS), setting.batch_size, seed)
    prepare = prepared(name, None if live else seed, **options)
    steps = functools.partial(
        update,
        step_fn=step,
        packing=packing,
        weights=setting.online.weights,
        size=setting.batch_size,
        epochs=setting.epochs,
        num_minibatches=setting.num_minibatches,
    )
    yield from iterate(state, collect, prepare, steps, iterations=iterations, refresh=refresh)


@functools.cache
def prepared(name, seed, **options):
    setting, _, packing, _ = programs(name, **options)
    frozen = {} if seed is None else {"reference": MODEL.init(jax.random.key(seed))}
    return make_prepare(setting.online, packing, size=setting.batch_size, length=LENGTH, frozen=frozen)


def evaluate(params, reference, seed, count=8):
    """(true reward, KL from the reference in nats per completion) over all prompts, ``count`` completions of each."""
    trees = sampler(count)(params, PROMPTS, jax.random.key(7_000 + seed), np.arange(len(PROMPTS)))
    packing = Packing(MODEL.mesh, (512, 512), count)
    batch = packing.batch(trees)
    ref_logps = np.asarray(reference_pass(reference, batch))
    old = np.asarray(batch.rows.extras["old_logps"])
    mask = np.asarray(batch.rows.mask)
    return float(np.mean(score(trees, None))), float(np.sum((old - ref_logps)[mask]) / (len(PROMPTS) * count))


@jax.jit
def reference_pass(params, batch):
    return jax.lax.map(lambda rows: MODEL.token_logps(params, rows), batch.rows)
