"""Checkpoints: bitwise, atomic, the right ones kept, the wrong ones refused."""

import dataclasses
import subprocess
import sys
import textwrap
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.checkpoint import Checkpoints, check_writable
from jaxalign.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: Any
    params: Any
    opt_state: Any
    method_state: Any
    key: Any


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, mask={"w": True, "b": False}))


def start(width: int = 3, seed: int = 0) -> State:
    key = jax.random.key(seed)
    params = {"w": jax.random.normal(key, (4, width)), "b": jnp.zeros(width, jnp.bfloat16)}
    return State(jnp.int32(0), params, OPTIMIZER.init(params), {"kl": jnp.float32(0.1), "none": ()}, key)


@jax.jit
def next_state(state: State) -> State:
    key = jax.random.fold_in(state.key, state.step)
    grads = jax.tree.map(lambda p: p + jax.random.normal(key, p.shape, p.dtype), state.params)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    return dataclasses.replace(
        state, step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
    )


def bits(tree: Any) -> list[bytes]:
    leaves = jax.tree.leaves(tree)
    keys = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [np.asarray(jax.random.key_data(x) if k else x).tobytes() for x, k in zip(leaves, keys, strict=True)]


def at(step: int) -> State:
    return dataclasses.replace(start(), step=jnp.int32(step))


def test_a_restored_state_is_the_saved_one_bit_for_bit(tmp_path):
    state = next_state(next_state(start()))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, position=17)
    with Checkpoints(tmp_path) as checkpoints:
        restored, position = checkpoints.restore(start(seed=1))
    assert position == 17
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert bits(restored) == bits(state)
    assert bits(next_state(restored)) == bits(next_state(state))


def test_the_position_is_the_step_by_default(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(5))
        checkpoints._manager.wait_until_finished()
        assert checkpoints.restore(start())[1] == 5


def test_arrays_return_to_the_shardings_asked_for(tmp_path):
    mesh = jax.make_mesh((len(jax.devices()),), ("x",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = dataclasses.replace(start(), params={"w": jnp.arange(64.0).reshape(16, 4)}, opt_state=())
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split if x.shape == (16, 4) else whole), state
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(like)
    assert restored.params["w"].sharding == split
    assert restored.method_state["kl"].sharding == whole
    assert bits(restored) == bits(state)


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    double = jax.jit(lambda x: 2 * x, donate_argnums=0)
    values = jnp.arange(4_000_000, dtype=jnp.float32) + 1
    expected = np.array(values)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(dataclasses.replace(start(), params={"w": values}))
        for _ in range(20):
            values = double(values)
        values.block_until_ready()
    with Checkpoints(tmp_path) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore_params({"w": values})["w"], expected)


def test_the_latest_and_the_best_are_kept(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: float("nan"), 4: None, 5: 0.7, 6: 0.2}
    for mode, best in (("max", 2), ("min", 6)):
        with Checkpoints(tmp_path / mode, keep=2, best="accuracy", mode=mode) as checkpoints:
            for step, score in scores.items():
                checkpoints.save(at(step), metrics=None if score is None else {"accuracy": score})
        with Checkpoints(tmp_path / mode, keep=2, best="accuracy", mode=mode) as checkpoints:
            assert set(checkpoints._manager.all_steps()) == {best, 5, 6}
            assert (checkpoints.best_step(), checkpoints.latest_step()) == (best, 6)
            assert checkpoints.metrics(best) == {"accuracy": scores[best]}
            assert checkpoints.restore(start(), step=best)[0].step == best


def test_a_half_written_checkpoint_is_never_picked_up(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(1))
    # A process that dies the moment the second save has begun to write.
    program = """
        import dataclasses, os, sys
        import jax, jax.numpy as jnp
        from jaxalign.checkpoint import Checkpoints

        @jax.tree_util.register_dataclass
        @dataclasses.dataclass
        class State:
            step: object
            params: object

        Checkpoints(sys.argv[1]).save(State(jnp.int32(2), jax.random.normal(jax.random.key(0), (8_000_000,))))
        os._exit(9)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=False)
    assert ended.returncode == 9
    left = [path.name for path in tmp_path.iterdir()]
    assert any(name.startswith("2.") for name in left), left
    with Checkpoints(tmp_path, read_only=True) as reader:  # a reader leaves the writer's unfinished business alone
        assert reader.latest_step() == 1
        assert [path.name for path in tmp_path.iterdir()] == left
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert bits(checkpoints.restore(start())[0]) == bits(at(1))
    deadline = time.monotonic() + 30  # Orbax cleans up in the background
    while [path.name for path in tmp_path.iterdir()] != ["1"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_params_can_be_read_without_the_rest(tmp_path):
    state = next_state(start())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    with Checkpoints(tmp_path) as checkpoints:
        assert bits(checkpoints.restore_params(jax.eval_shape(lambda: state.params))) == bits(state.params)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: start(width=5), r"its params\.b is bfloat16\[3\], wanted bfloat16\[5\]"),
        (lambda: dataclasses.replace(start(), params={"w": jnp.zeros((4, 3))}), r"it also has params\.b"),
        (
            lambda: dataclasses.replace(start(), method_state={"kl": jnp.float32(0), "mean": jnp.zeros(1)}),
            r"it has no method_state\.mean",
        ),
        (lambda: dataclasses.replace(start(), step=jnp.float32(0)), r"its step is int32\[\], wanted float32\[\]"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, other, words):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(start())
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=words):
        checkpoints.restore(other())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore's readers
def test_no_checkpoint_and_a_damaged_one_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match=r"contains no checkpoint\. Give"):
            checkpoints.restore(start())
        checkpoints.save(start())
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=r"of step 3\. Choose one of 0"):
        checkpoints.restore(start(), step=3)
    for path in (tmp_path / "0" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=r"is damaged\. Delete it"):
        checkpoints.restore(start())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore's readers
@pytest.mark.parametrize("content", ["", "[1]", '{"place": 3}', '{"position": "x"}'])
def test_a_damaged_position_is_a_user_error(tmp_path, content):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(start())
    (tmp_path / "0" / "run" / "metadata").write_text(content)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=r"is damaged\. Delete it"):
        checkpoints.restore(start())


def test_a_directory_that_cannot_be_written_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be written .*\. Choose another one\.$"):
        Checkpoints(tmp_path / "file" / "run")
    check_writable(tmp_path / "new" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
