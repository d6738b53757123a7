"""Checkpoints: Orbax's manager for a train state, told what to keep and when to refuse."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxalign.errors import UserError


class Checkpoints:
    """The last few checkpoints of a run, and the best one.

    A directory holds one folder per saved step: the arrays of the state, each under its path in the tree, and
    the position in the data. Orbax writes a folder under a temporary name and renames it when it is complete, so
    what a killed process left half-written is never picked up (and is removed by the next run).

    Saving goes on in the background: `save` returns once the arrays are copied out of the devices, after which
    the state may be donated.

    Args:
        directory: where to keep the checkpoints; created when missing.
        keep: how many of the latest to keep.
        best: the name of the metric, among those given to `save`, whose best checkpoint is kept as well.
        mode: whether a larger ("max") or a smaller ("min") metric is better.
        read_only: for reading beside a run that may still be writing: nothing is saved or cleaned up.

    Raises:
        UserError: if ``directory`` cannot be written, or is to be read and does not exist.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 1,
        best: str | None = None,
        mode: Literal["max", "min"] = "max",
        read_only: bool = False,
    ):
        self.directory = Path(directory).absolute()
        if not read_only:
            check_writable(self.directory)
        elif not self.directory.is_dir():
            raise UserError(f"{self.directory} does not exist; give the directory of a run that saved checkpoints.")
        self.best = best
        self._sign = 1.0 if mode == "max" else -1.0
        latest: policies.PreservationPolicy = policies.LatestN(max(keep, 1))
        if best is not None:
            latest = policies.AnyPreservationPolicy([latest, policies.BestN(get_metric_fn=self._quality, n=1)])
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=latest,
                best_fn=self._quality,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
                save_interval_steps=0 if read_only else 1,
            ),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
        )

    def save(self, state: Any, *, position: int | None = None, metrics: Mapping[str, float] | None = None) -> None:
        """Save ``state`` under its ``step``.

        Args:
            state: a pytree of arrays with a ``step``; typed random keys are fine.
            position: where the data stands; by default the step.
            metrics: what was measured here; `best` is looked up in it.
        """
        step = int(state.step)
        run = {"position": step if position is None else position}
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.PyTreeSave(_by_path(state)), run=ocp.args.JsonSave(run)),
            metrics={name: float(value) for name, value in (metrics or {}).items()},
        )

    def restore(self, like: Any, *, step: int | None = None) -> tuple[Any, int]:
        """The saved state, bit for bit, and its position in the data.

        Args:
            like: a state of the same structure: it says where each array goes. With shapes and shardings instead of
                arrays (`jax.ShapeDtypeStruct`), the arrays it stands for need not be in memory beside the saved ones.
            step: which checkpoint; by default the latest.

        Raises:
            UserError: without a checkpoint, or if the saved arrays are not those of ``like``.
        """
        step = self._existing(step)
        state = self._read(step, like, prefix="")
        try:
            run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
            return state, int(run["position"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise self._damaged(step) from error

    def restore_params(self, like: Any, *, step: int | None = None, part: str | None = None) -> Any:
        """The ``params`` of a saved state alone (or one ``part`` of them, by its name), and nothing else of it read.

        ``like`` and ``step`` are those of `restore`.
        """
        return self._read(self._existing(step), like, prefix="params." if part is None else f"params.{part}.")

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, None without any."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the checkpoint with the best metric (the later one of equals), None without any."""
        return self._manager.best_step()

    def metrics(self, step: int) -> dict[str, float]:
        """What was measured when ``step`` was saved."""
        return dict(self._manager.metrics(step) or {})

    def close(self) -> None:
        """Wait until everything is written."""
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _quality(self, metrics: Mapping[str, float]) -> float:
        value = self._sign * metrics.get(self.best or "", math.nan)
        return -math.inf if math.isnan(value) else value  # not measured here, or diverged: worse than any number

    def _existing(self, step: int | None) -> int:
        self._manager.wait_until_finished()  # one that is still being written is there, and cannot be read yet
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(f"{self.directory} holds no checkpoint; give the directory of a run that saved one.")
        if step is not None and step not in steps:
            known = ", ".join(map(str, sorted(steps)))
            raise UserError(f"{self.directory} holds no checkpoint of step {step}; there are those of {known}.")
        return max(steps) if step is None else step

    def _read(self, step: int, like: Any, prefix: str) -> Any:
        wanted = {prefix + name: _abstract(leaf) for name, leaf in _by_path(like).items()}
        arguments = ocp.args.PyTreeRestore(
            wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        try:
            self._check_same(step, wanted, prefix)
            found = self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
        except UserError:
            raise
        except (ValueError, OSError) as error:
            raise self._damaged(step) from error
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])

    def _damaged(self, step: int) -> UserError:
        return UserError(
            f"The checkpoint {self.directory / str(step)} is damaged; delete it to go on from an earlier one."
        )

    def _check_same(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], prefix: str) -> None:
        """Orbax would pad, cut or cast what does not fit; a checkpoint of something else is a mistake to be told."""
        saved = self._manager.item_metadata(step)["state"].tree
        where = f"The checkpoint {self.directory / str(step)} is of another model or configuration"
        advice = "use the configuration it was made with, or another output directory."
        for name, leaf in wanted.items():
            if name not in saved:
                raise UserError(f"{where}: it has no {name}; {advice}")
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                continue  # stored as its key data
            if (saved[name].shape, saved[name].dtype) != (leaf.shape, leaf.dtype):
                raise UserError(
                    f"{where}: its {name} is {saved[name].dtype}{list(saved[name].shape)}, "
                    f"wanted {leaf.dtype}{list(leaf.shape)}; {advice}"
                )
        extra = sorted(name for name in saved if name.startswith(prefix) and name not in wanted)
        if extra:
            raise UserError(f"{where}: it also has {extra[0]}; {advice}")


def check_writable(directory: str | Path) -> None:
    """Raise unless ``directory`` can be written, or created and then written; leaves nothing behind.

    Raises:
        UserError: naming the directory and the reason.
    """
    directory = Path(directory).absolute()
    existing = directory
    try:
        while not _exists(existing):
            existing = existing.parent
        # By doing it: permission bits say little about read-only mounts, quotas and other users' files.
        with tempfile.TemporaryDirectory(dir=existing, prefix=".writable-"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"The directory {directory} cannot be written ({reason} at {existing}); choose another one."
        ) from error


def _exists(path: Path) -> bool:
    """Raises OSError where it cannot be told; `Path.exists` answers False or raises by the version of Python."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _by_path(tree: Any) -> dict[str, Any]:
    """The leaves under dotted names: a flat dict is the same for Orbax whatever containers the state is made of."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
