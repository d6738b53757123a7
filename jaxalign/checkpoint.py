"""Checkpoints of a train state: Orbax's manager, with a retention policy and checks of what is restored."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxalign.errors import UserError


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The latest checkpoints of a run and the best one, in a directory.

    The directory contains a folder per saved step, with the arrays of the state under their paths in the tree and the
    position in the data. Orbax writes a folder under a temporary name and renames it once it is complete. So a folder
    that a killed process left half-written is never restored, and the next run removes it.

    Saving continues in the background: ``save`` returns once the arrays are copied from the devices. The state may be
    donated from then on.

    Args:
        directory: directory of the checkpoints; created if it does not exist.
        keep: number of latest checkpoints to keep.
        best: name of a metric passed to ``save``, whose best checkpoint is kept as well.
        mode: whether a larger ("max") or a smaller ("min") metric is better.
        read_only: read while another process may be writing: nothing is saved or cleaned up.

    Raises:
        UserError: if ``directory`` cannot be written, or does not exist and is opened for reading.
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
            raise UserError(f"{self.directory} does not exist. Give the directory of a run that saved checkpoints.")
        self.best = best
        self._sign = 1.0 if mode == "max" else -1.0
        preserved = [policies.LatestN(max(keep, 1))]
        preserved += [] if best is None else [policies.BestN(get_metric_fn=self._quality, n=1)]
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(preserved),
                best_fn=self._quality,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
                save_interval_steps=0 if read_only else 1,
            ),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
        )

    def save(self, state: Any, *, position: int | None = None, metrics: Mapping[str, float] | None = None) -> None:
        """Saves a state under its ``step``.

        Args:
            state: a pytree of arrays with a ``step``; typed random keys are allowed.
            position: position in the data; by default the step.
            metrics: metrics of this state, among them the one named ``best``.
        """
        step = int(state.step)
        run = {"position": step if position is None else position}
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.PyTreeSave(_by_path(state)), run=ocp.args.JsonSave(run)),
            metrics={name: float(value) for name, value in (metrics or {}).items()},
        )

    def restore(self, like: Any, *, step: int | None = None) -> tuple[Any, int]:
        """Restores a saved state, bit for bit, and its position in the data.

        Args:
            like: a state of the same structure and sharding. It may consist of ``jax.ShapeDtypeStruct`` instead of
                arrays, so that memory holds only the restored state.
            step: step of the checkpoint; by default the latest.

        Returns:
            ``(state, position)``.

        Raises:
            UserError: without a checkpoint, or if the saved arrays differ from ``like`` in name, shape or type.
        """
        step = self._existing(step)
        state = self._read(step, like, prefix="")
        try:
            run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
            return state, int(run["position"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise self._damaged(step) from error

    def restore_params(self, like: Any, *, step: int | None = None, part: str | None = None) -> Any:
        """Restores only the ``params`` of a saved state, or one part of them, without reading the rest.

        Args:
            like: parameters of the same structure and sharding, as in ``restore``.
            step: step of the checkpoint; by default the latest.
            part: name of the part.

        Returns:
            the parameters.

        Raises:
            UserError: as ``restore``.
        """
        return self._read(self._existing(step), like, prefix="params." if part is None else f"params.{part}.")

    def latest_step(self) -> int | None:
        """Returns the step of the latest checkpoint, or None without any."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the step of the checkpoint with the best metric (the later one of equals), or None without any."""
        return self._manager.best_step()

    def metrics(self, step: int) -> dict[str, float]:
        """Returns the metrics that were saved with a step."""
        return dict(self._manager.metrics(step) or {})

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _quality(self, metrics: Mapping[str, float]) -> float:
        value = self._sign * metrics.get(self.best or "", math.nan)
        return -math.inf if math.isnan(value) else value  # not measured, or diverged: worse than any number

    def _existing(self, step: int | None) -> int:
        self._manager.wait_until_finished()  # the latest one is listed before it is written
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(f"{self.directory} contains no checkpoint. Give the directory of a run that saved one.")
        if step is not None and step not in steps:
            known = ", ".join(map(str, sorted(steps)))
            raise UserError(f"{self.directory} contains no checkpoint of step {step}. Choose one of {known}.")
        return max(steps) if step is None else step

    def _read(self, step: int, like: Any, prefix: str) -> Any:
        wanted = {prefix + name: _abstract(leaf) for name, leaf in _by_path(like).items()}
        arguments = ocp.args.PyTreeRestore(
            wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        try:
            self._check_same(step, wanted, prefix)
            leaves = self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
        except UserError:
            raise
        except (ValueError, OSError) as error:
            raise self._damaged(step) from error
        return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in wanted])

    def _damaged(self, step: int) -> UserError:
        return UserError(
            f"The checkpoint {self.directory / str(step)} is damaged. Delete it to continue from an earlier one."
        )

    def _check_same(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], prefix: str) -> None:
        """Raises unless the saved arrays have the wanted names, shapes and types: Orbax would pad, cut or cast them."""
        saved = self._manager.item_metadata(step)["state"].tree
        where = f"The checkpoint {self.directory / str(step)} is of another model or configuration"
        advice = "Use the configuration it was made with, or another output directory."
        for name, leaf in wanted.items():
            if name not in saved:
                raise UserError(f"{where}: it has no {name}. {advice}")
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                continue  # stored as its key data
            if (saved[name].shape, saved[name].dtype) != (leaf.shape, leaf.dtype):
                raise UserError(
                    f"{where}: its {name} is {saved[name].dtype}{list(saved[name].shape)}, "
                    f"wanted {leaf.dtype}{list(leaf.shape)}. {advice}"
                )
        extra = sorted(name for name in saved if name.startswith(prefix) and name not in wanted)
        if extra:
            raise UserError(f"{where}: it also has {extra[0]}. {advice}")


def check_writable(directory: str | Path) -> None:
    """Raises unless a directory can be written, or created and then written; nothing remains there.

    Raises:
        UserError: if it cannot be written; the message names the directory and the reason.
    """
    existing = directory = Path(directory).absolute()
    try:
        while not _exists(existing):
            existing = existing.parent
        # Write something: permission bits do not show read-only mounts and quotas.
        with tempfile.TemporaryDirectory(dir=existing, prefix=".writable-"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"The directory {directory} cannot be written ({reason} at {existing}). Choose another one."
        ) from error


def _exists(path: Path) -> bool:
    """Returns whether a path exists; raises OSError if that is unknown (``Path.exists`` varies with Python)."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves under dotted names: for Orbax a flat dict does not depend on the state's containers."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape, type and sharding of an array."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
