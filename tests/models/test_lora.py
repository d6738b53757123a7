"""Adapters: nothing changes at first, only they are trained, merged they are the same model, and PEFT's files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxalign
from jaxalign.data.trees import pack
from jaxalign.errors import UserError
from jaxalign.loop import gradients, init_state, make_step, place_batch
from jaxalign.methods import dpo
from jaxalign.models import lora
from jaxalign.models.config import LoraConfig
from jaxalign.models.model import Model
from jaxalign.models.params import partition, union
from jaxalign.models.sharding import make_mesh
from tests.test_tree_forward import random_trees

LORA = LoraConfig(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def base(tiny_config):
    model = Model(tiny_config)
    return model, model.init(jax.random.key(0))


def adapted(base, config=LORA, seed=1):
    """A model with adapters that do something: a fresh B is zero."""
    model = dataclasses.replace(base[0], lora=config)
    adapters = lora.init(model, jax.random.key(seed))
    noise = lambda path, x: x if path[-1].key == "lora_a" else 0.1 * jax.random.normal(jax.random.key(2), x.shape)  # noqa: E731
    return model, jax.tree_util.tree_map_with_path(noise, adapters)


def tokens(config):
    return jax.random.randint(jax.random.key(5), (2, 12), 3, config.vocab_size)


def test_fresh_adapters_change_nothing(base, tiny_config):
    model = dataclasses.replace(base[0], lora=LORA)
    params = union(lora.init(model, jax.random.key(1)), base[1])
    plain = base[0].logits(base[1], tokens(tiny_config))
    np.testing.assert_array_equal(model.logits(params, tokens(tiny_config)), plain)
    again = lora.base_model(model)
    assert again == base[0]
    jax.tree.map(np.testing.assert_array_equal, lora.base_params(params), base[1])


def test_a_is_drawn_as_documented(base):
    model = dataclasses.replace(base[0], lora=LoraConfig(rank=16))
    adapters = lora.init(model, jax.random.key(1))
    width = base[0].config.hidden_size
    a = np.asarray(adapters["layers"]["attention"]["q"]["lora_a"])
    assert abs(a).max() <= width**-0.5
    assert abs(a.std() - (3 * width) ** -0.5) < 0.1 * (3 * width) ** -0.5
    assert np.std(a[0] - a[1]) > 0, "layers are drawn independently"
    assert not np.any(adapters["layers"]["mlp"]["down"]["lora_b"])


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", ["_proj", "q_proj|down_proj"])
def test_merged_is_the_same_model_and_the_update_is_the_scaled_product(base, tiny_config, rslora, targets):
    model, adapters = adapted(base, LoraConfig(rank=4, alpha=8.0, targets=targets, rslora=rslora))
    whole = union(adapters, base[1])
    merged, params = lora.merge(model, whole)
    assert merged == base[0]
    got, want = (m.logits(p, tokens(tiny_config)) for m, p in ((merged, params), (model, whole)))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    assert np.abs(got - base[0].logits(base[1], tokens(tiny_config))).max() > 0.1
    q = adapters["layers"]["attention"]["q"]
    product = np.asarray(q["lora_a"], np.float64) @ np.asarray(q["lora_b"], np.float64)
    kernel = lambda tree: np.asarray(tree["layers"]["attention"]["q"]["kernel"], np.float64)  # noqa: E731
    np.testing.assert_allclose(kernel(params) - kernel(base[1]), (4 if rslora else 2) * product, atol=1e-6)
    if targets != "_proj":
        np.testing.assert_array_equal(params["layers"]["mlp"]["up"]["kernel"], base[1]["layers"]["mlp"]["up"]["kernel"])


def train(model, adapters, frozen_base, steps=3):
    """Adapters after some DPO steps, the losses, and the first gradient; the reference is the base itself."""
    method, optimizer = dpo.dpo(model, beta=0.5), optax.adamw(1e-2)
    rows = [pack(random_trees(8, seed=s), row_lengths=(64,), rows_per_microbatch=8) for s in range(steps)]
    batches = [place_batch(*packed, model.mesh) for packed in rows]
    first = jax.jit(lambda p, f, b: gradients(method, p, None, (), b, fixed=f)[1])(adapters, frozen_base, batches[0])
    state = init_state(jax.tree.map(jnp.copy, adapters), optimizer, jax.random.key(1))
    step = make_step(method, optimizer, state, fixed=frozen_base)
    losses = []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state.params, losses, first


def test_dpo_on_adapters_starts_at_ln_2_and_leaves_the_base_bitwise(base):
    model = dataclasses.replace(base[0], lora=LORA)
    before = jax.tree.map(np.array, base[1])
    adapters = lora.init(model, jax.random.key(1))
    trained, losses, _ = train(model, adapters, base[1])
    assert abs(losses[0] - np.log(2)) < 1e-6
    for path, moved in jax.tree.leaves_with_path(jax.tree.map(lambda a, b: jnp.abs(a - b).max(), trained, adapters)):
        assert moved > 0, path
    jax.tree.map(np.testing.assert_array_equal, base[1], before)
    assert {jax.tree_util.keystr(path[-1:], simple=True) for path, _ in jax.tree.leaves_with_path(trained)} == {
        "lora_a",
        "lora_b",
    }


@pytest.mark.thorough
def test_the_gradient_of_the_adapters_is_that_of_the_whole_tree(base):
    model, adapters = adapted(base)
    _, _, got = train(model, adapters, base[1], steps=1)
    # The same loss with everything trained, its reference the base's cached log-probs.
    trees = random_trees(8, seed=0)
    batch = place_batch(*pack(trees, row_lengths=(64,), rows_per_microbatch=8), model.mesh)
    method = dpo.dpo(base[0], beta=0.5)
    prepared, _ = method.prepare(base[1], base[1], (), batch)
    whole = dpo.dpo(model, beta=0.5)
    grads = jax.grad(lambda p: whole.loss(p, jax.tree.map(lambda x: x[0], prepared.rows))[0])(union(adapters, base[1]))
    want, _ = partition(grads, lora.is_adapter)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


def test_frozen_weights_get_no_gradient_computation(base):
    """Counted by the compiler: the adapters' gradient leaves out the products of the whole tree's."""
    model, adapters = adapted(base)
    tokens_in = jnp.zeros((4, 64), jnp.int32)

    def flops(trained, fixed):
        def loss(params):
            return jnp.sum(model.logits(union(params, fixed), tokens_in) ** 2)

        return jax.jit(jax.grad(loss)).lower(trained).compile().cost_analysis()["flops"]

    whole = union(adapters, base[1])
    kernels = sum(leaf.size for path, leaf in jax.tree.leaves_with_path(base[1]["layers"]) if path[-1].key == "kernel")
    saved = flops(whole, None) - flops(adapters, base[1])
    # Within the layer scan the compiler counts one layer; each kernel's gradient is one product of 2·tokens·size.
    assert saved >= 0.9 * 2 * tokens_in.size * kernels / base[0].config.num_hidden_layers


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 1, 8)], ids=str)
def test_sharded_adapters_give_the_single_device_run(base, shape):
    model, adapters = adapted(base)
    want, _, first = train(model, adapters, base[1])
    mesh_model = dataclasses.replace(model, mesh=make_mesh(*shape))
    places = mesh_model.param_shardings()
    put = lambda tree, part: jax.device_put(tree, part)  # noqa: E731
    split_adapters, split_base = partition(places, lora.is_adapter)
    got, _, again = train(mesh_model, put(adapters, split_adapters), put(base[1], split_base))
    spec = split_adapters["layers"]["attention"]["q"]["lora_b"].spec
    assert "tensor" in spec, "B is split along the projection's outputs"
    norm = lambda tree: float(optax.tree.norm(jax.tree.map(np.asarray, tree)))  # noqa: E731
    difference = lambda a, b: norm(jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b))  # noqa: E731
    assert difference(again, first) <= 1e-5 * norm(first)
    assert difference(got, want) <= 1e-3 * difference(want, adapters)


@pytest.mark.parametrize("targets", ["_proj", "(q|v)_proj"])
def test_saved_and_loaded_again(base, tmp_path, targets):
    model, adapters = adapted(base, LoraConfig(4, 8.0, targets, rslora=True))
    lora.save(tmp_path / "adapter", model, adapters, "some/model")
    again, loaded = lora.load(tmp_path / "adapter", base[0])
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)
    assert (again.lora.rank, again.lora.scale) == (4, model.lora.scale)
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "some/model"


def test_mistakes_are_reported_in_one_line(base, tmp_path):
    for config, words in (
        (LoraConfig(rank=0), "lora.rank is 0"),
        (LoraConfig(targets="nothing"), "matches none of self_attn.q_proj"),
        (LoraConfig(targets="("), "is not a regular expression"),
    ):
        with pytest.raises(UserError, match=words.replace("(", r"\(")):
            lora.init(dataclasses.replace(base[0], lora=config), jax.random.key(0))
    with pytest.raises(UserError, match="The model has no lora"):
        lora.init(base[0], jax.random.key(0))
    with pytest.raises(UserError, match=r"adapter_config\.json and adapter_model\.safetensors cannot be read"):
        lora.load(tmp_path, base[0])
    model, adapters = adapted(base)
    lora.save(tmp_path, model, adapters)
    good = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, words in (
        ({"r": None}, "r must be a whole number"),
        ({"target_modules": "all-linear"}, "target_modules must be a list"),
        ({"use_dora": True}, "use_dora is True. Only plain LoRA"),
        ({"alpha_pattern": {"q_proj": 3}}, "Only plain LoRA"),
        ({"init_lora_weights": "pissa"}, "Only plain LoRA"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(good | change))
        with pytest.raises(UserError, match=words):
            lora.load(tmp_path, base[0])
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match="contains a list"):
        lora.load(tmp_path, base[0])
    (tmp_path / "adapter_config.json").write_text(json.dumps(good))
    deeper = Model(dataclasses.replace(base[0].config, num_hidden_layers=3))
    with pytest.raises(UserError, match="is in only one of the file and the model"):
        lora.load(tmp_path, deeper)
    wider = Model(dataclasses.replace(base[0].config, intermediate_size=128))
    with pytest.raises(UserError, match="the model's"):
        lora.load(tmp_path, wider)


def test_a_merged_model_is_saved_as_any_other(base, tmp_path, tiny_config):
    model, adapters = adapted(base)
    merged, params = lora.merge(model, union(adapters, base[1]))
    jaxalign.save_model(tmp_path / "m", merged, params)
    again, loaded = jaxalign.load_model(tmp_path / "m")
    np.testing.assert_array_equal(again.logits(loaded, tokens(tiny_config)), merged.logits(params, tokens(tiny_config)))
