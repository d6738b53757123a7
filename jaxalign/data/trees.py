"""Prompt trees, and packing them into rows.

A *tree* is a prompt and, directly behind it, its completions. Packing puts whole trees into rows of one length,
first-fit by decreasing length. It only arranges: the examples of a step are chosen before, regardless of their length.
:mod:`jaxalign.masking` shows the layout.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from jaxalign.errors import UserError
from jaxalign.masking import Rows

ROW_LENGTHS = (512, 1024, 2048)


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """A prompt of P tokens and its K completions. :meth:`Tree.of` makes one from plain sequences.

    Attributes:
        prompt: Token ids.
        completions: Token ids of every completion.
        masks: Whether a completion's token counts as a target.
        extras: Per-completion inputs ``[K]``: labels, scores, reference log-probs, the example's index.
        token_extras: Per-token inputs, an array ``[C]`` for every completion: the log-probs it was sampled with.
        cut_from: The whole prompt if it was truncated. Answers to one prompt may cut it at different places.
    """

    prompt: Int[np.ndarray, " P"]
    completions: tuple[Int[np.ndarray, " C"], ...]
    masks: tuple[Bool[np.ndarray, " C"], ...]
    extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    token_extras: Mapping[str, tuple[np.ndarray, ...]] = dataclasses.field(default_factory=dict)
    cut_from: Int[np.ndarray, " Q"] | None = None

    def __post_init__(self) -> None:
        if len(self.prompt) == 0:
            raise ValueError("A tree's prompt is empty. Tree.of makes the first token the prompt.")
        if not self.completions or any(len(c) == 0 for c in self.completions):
            raise ValueError("A tree needs at least one completion, and every completion at least one token.")
        if [len(m) for m in self.masks] != [len(c) for c in self.completions]:
            raise ValueError("A tree's masks must have the lengths of its completions.")
        if any(len(value) != len(self.completions) for value in self.extras.values()):
            raise ValueError(f"Every extra of a tree needs one value per completion ({len(self.completions)}).")
        for name, values in self.token_extras.items():
            if name in self.extras or [len(v) for v in values] != [len(c) for c in self.completions]:
                raise ValueError(f"Token extra {name!r} needs a name of its own and one value per completion token.")

    @classmethod
    def of(
        cls,
        prompt: Sequence[int] | np.ndarray,
        completions: Sequence[Sequence[int] | np.ndarray],
        masks: Sequence[Sequence[bool] | np.ndarray] | None = None,
        token_extras: Mapping[str, Sequence[Any]] | None = None,
        **extras: Any,
    ) -> Tree:
        """Makes a tree from plain sequences.

        A text's first token is never a target, so without a prompt the completions' first token is the prompt.

        Args:
            prompt: Token ids.
            completions: Token ids of every completion.
            masks: Whether a token counts; by default all do.
            token_extras: One value per token of every completion, by name.
            **extras: A scalar, or one value per completion.

        Returns:
            The tree.

        Raises:
            ValueError: If a completion is empty, or if the prompt is empty and completions begin with different tokens.

        >>> Tree.of([], [[7, 8, 9]]).prompt
        array([7], dtype=int32)
        """
        texts = [np.asarray(c, np.int32) for c in completions]
        counts = [np.ones(len(t), bool) for t in texts] if masks is None else [np.asarray(m, bool) for m in masks]
        per_token = {name: [_narrow(v) for v in values] for name, values in (token_extras or {}).items()}
        root = np.asarray(prompt, np.int32)
        if len(root) == 0:
            if len({t[0] if len(t) else None for t in texts}) != 1 or any(len(t) < 2 for t in texts):
                raise ValueError("Without a prompt, completions must share their first token and have a second one.")
            root, texts, counts = texts[0][:1], [t[1:] for t in texts], [m[1:] for m in counts]
            per_token = {name: [v[1:] for v in values] for name, values in per_token.items()}
        spread = {name: np.broadcast_to(_narrow(value), (len(texts),)) for name, value in extras.items()}
        return cls(root, tuple(texts), tuple(counts), spread, {name: tuple(v) for name, v in per_token.items()})

    def select(self, completions: Sequence[int] | np.ndarray) -> Tree:
        """Returns the tree with only these of its completions, in this order.

        >>> Tree.of([1], [[2], [3], [4]], score=[0.0, 1.0, 2.0]).select([2, 0]).extras["score"]
        array([2., 0.], dtype=float32)
        """

        def pick(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[k] for k in completions)

        return dataclasses.replace(
            self,
            completions=pick(self.completions),
            masks=pick(self.masks),
            extras={name: value[np.asarray(completions)] for name, value in self.extras.items()},
            token_extras={name: pick(values) for name, values in self.token_extras.items()},
        )

    def __len__(self) -> int:
        """Distinct tokens: P + Σ C."""
        return len(self.prompt) + self.num_targets

    @property
    def prompt_key(self) -> bytes:
        """Key that is equal for trees of one prompt, wherever it was truncated.

        >>> tree = Tree.of([2, 3], [[4]])
        >>> dataclasses.replace(tree, cut_from=np.array([1, 2, 3], np.int32)).prompt_key == tree.prompt_key
        False
        """
        return (self.prompt if self.cut_from is None else self.cut_from).tobytes()

    @property
    def num_targets(self) -> int:
        """Number of target slots: Σ C. Every completion token has one; its mask says whether it counts."""
        return sum(map(len, self.completions))


def fingerprint(*groups: Sequence[Tree]) -> str:
    """Returns a hash of all token ids, masks and extras.

    >>> one, other = Tree.of([1], [[2], [3]]), Tree.of([1, 2], [[3], [3]])
    >>> fingerprint([one]) == fingerprint([one]), fingerprint([one]) == fingerprint([other])
    (True, False)
    """
    digest = hashlib.sha256()
    for group in groups:
        digest.update(f"group of {len(group)};".encode())
        for tree in group:
            extras = [value for _, value in sorted(tree.extras.items())]
            for array in (tree.prompt, *tree.completions, *tree.masks, *extras):
                digest.update(f"{array.dtype.str} {len(array)};".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Packed(NamedTuple):
    """Rows with leading axes [M, R]. Only the first ``used`` microbatches contain examples; the rest is padding."""

    rows: Rows
    used: int

    @property
    def positions(self) -> int:
        """Token positions that a pass over the used microbatches computes: used · R · T."""
        return self.used * int(np.prod(self.rows.tokens.shape[1:]))

    @property
    def slots(self) -> int:
        """Target slots that pass through the language-model head: used · R · S."""
        return self.used * int(np.prod(self.rows.source.shape[1:]))


def first_fit_decreasing(sizes: Int[np.ndarray, "N D"], capacity: Sequence[int]) -> list[list[int]] | None:
    """Puts items of D-dimensional size into few bins: the largest first, into the first bin that has room.

    Args:
        sizes: Amounts of D resources that items take. The first resource orders the items.
        capacity: Amounts of the resources in a bin.

    Returns:
        Bins of item numbers, or None if an item is larger than a bin. Ties keep the items' order, so the result is
        deterministic.
    """
    if len(sizes) and np.any(sizes.max(0) > capacity):
        return None
    room = np.tile(np.asarray(capacity), (len(sizes), 1))  # as many bins as could be needed
    bins: list[list[int]] = []
    for item in np.argsort(-sizes[:, 0], kind="stable"):
        chosen = int(np.argmax(np.all(room >= sizes[item], axis=1)))
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(int(item))
        room[chosen] -= sizes[item]
    return bins


class RowPlan(NamedTuple):
    """Rows of tree numbers, the row length T, the number of target slots S, and the price of computing them."""

    bins: list[list[int]]
    row_length: int
    num_slots: int
    price: float


def plan_rows(
    sizes: Int[np.ndarray, "N 3"], shapes: Iterable[tuple[int, int]], rows_per_microbatch: int = 1
) -> RowPlan | None:
    """Returns the cheapest of the shapes (T, S) for trees of these :func:`tree_sizes`; None if a tree does not fit.

    A row's price is T (1 + T/4096) + S/4, in tokens through the layers. The cost of attention grows with T, that of the
    head with S. The two weights are those of SmolLM2-135M. For larger models, both shares are smaller.
    """
    plans = []
    for length, slots in shapes:
        bins = first_fit_decreasing(sizes, (length, slots, example_slots(length)))
        if bins is not None:
            rows = -(-len(bins) // rows_per_microbatch) * rows_per_microbatch
            plans.append(RowPlan(bins, length, slots, rows * (length * (1 + length / 4096) + slots / 4)))
    return min(plans, key=lambda p: p.price, default=None)


def tree_sizes(trees: Sequence[Tree]) -> Int[np.ndarray, "N 3"]:
    """Returns what trees take of a row: columns, target slots, and one example slot."""
    return np.array([[len(tree), tree.num_targets, 1] for tree in trees], int).reshape(-1, 3)


def example_slots(row_length: int) -> int:
    """Returns the example slots E of a row, one per 8 columns. E depends on T only, so (T, S) fixes the program."""
    return max(1, row_length // 8)


def pack(
    trees: Sequence[Tree],
    *,
    row_lengths: Sequence[int] = ROW_LENGTHS,
    shapes: Sequence[tuple[int, int]] | None = None,
    rows_per_microbatch: int = 1,
    max_microbatches: int | None = None,
    num_completions: int | None = None,
) -> Packed:
    """Packs trees into rows of one length and rows into microbatches: NumPy arrays with leading axes [M, R].

    Args:
        trees: The examples of one step. All trees must have the same extras.
        row_lengths: Row lengths T to choose from, with S = T/2 or S = T target slots.
        shapes: Pairs (T, S) to choose from, instead of ``row_lengths``. The cheapest is chosen (:func:`plan_rows`).
        rows_per_microbatch: R, a multiple of the number of devices that rows are spread over.
        max_microbatches: M; by default ⌈trees / R⌉, enough for one row per tree.
        num_completions: K; by default the maximum of the trees. Trees with fewer leave branches unused.

    Returns:
        The rows, and the number of microbatches used. Padding: token, branch, position, source, target and last 0,
        example and owner -1, masks False, extras 0. ``rows.extras`` contains extras as [M, R, E, K] and token extras as
        [M, R, S], in their target slots.

    Raises:
        UserError: If a tree does not fit in any of the shapes.
        ValueError: If the trees have different extras, or exceed ``num_completions`` or ``max_microbatches``.

    >>> rows, used = pack([Tree.of([5, 6], [[7, 8], [9]])], row_lengths=[8])
    >>> rows.tokens[0, 0], rows.branch[0, 0]
    (array([5, 6, 7, 8, 9, 0, 0, 0], dtype=int32), array([0, 0, 1, 1, 2, 0, 0, 0], dtype=int32))
    """
    most = max((len(tree.completions) for tree in trees), default=1)
    completions = most if num_completions is None else num_completions
    if most > completions:
        raise ValueError(f"A tree has {most} completions, and num_completions is {completions}.")
    names = [(tree.extras.keys(), tree.token_extras.keys()) for tree in trees]
    if any(carried != names[0] for carried in names):
        raise ValueError("The trees of a batch must have the same extras.")
    allowed = shapes or [(length, slots) for length in row_lengths for slots in (length // 2, length)]
    chosen = plan_rows(tree_sizes(trees), allowed, rows_per_microbatch)
    if chosen is None:
        raise UserError(
            f"An example of {max(map(len, trees))} tokens (prompt and all completions) fits in none of the row shapes "
            f"{tuple(allowed)}. Lower max_length, or allow longer rows."
        )
    used = -(-len(chosen.bins) // rows_per_microbatch)
    microbatches = -(-len(trees) // rows_per_microbatch) if max_microbatches is None else max_microbatches
    if used > microbatches:
        raise ValueError(f"The trees take {used} microbatches, and max_microbatches is {microbatches}.")

    shape = (microbatches * rows_per_microbatch, chosen.row_length, chosen.num_slots)
    rows = _empty_rows(*shape, example_slots(chosen.row_length), completions, trees[0] if trees else None)
    for row, members in enumerate(chosen.bins):
        column = slot = 0
        for example, number in enumerate(members):
            column, slot = _lay(rows, row, example, trees[number], column, slot)
    split = (microbatches, rows_per_microbatch)
    return Packed(_map_rows(lambda x: x.reshape(*split, *x.shape[1:]), rows), used)


def packing_report(batches: Iterable[Packed]) -> dict[str, Any]:
    """Measures the cost of packing over batches.

    Returns:
        ``positions``: token positions computed; ``tokens``: distinct tokens in them; ``positions_per_token``: their
        ratio, 1 is perfect; ``slots``, ``targets``, ``slots_per_target``: the same for the language-model head;
        ``programs``: how often each shape (T, S) was used, one compiled program each.
    """
    positions = tokens = slots = targets = 0
    programs: dict[tuple[int, int], int] = {}
    for batch in batches:
        shape = (batch.rows.tokens.shape[-1], batch.rows.source.shape[-1])
        programs[shape] = programs.get(shape, 0) + 1
        positions, slots = positions + batch.positions, slots + batch.slots
        tokens += int(np.sum(batch.rows.example >= 0))
        targets += int(np.sum(batch.rows.owner >= 0))
    return {
        "positions": positions,
        "tokens": tokens,
        "positions_per_token": positions / max(tokens, 1),
        "slots": slots,
        "targets": targets,
        "slots_per_target": slots / max(targets, 1),
        "programs": programs,
    }


def _lay(rows: Rows, row: int, example: int, tree: Tree, column: int, slot: int) -> tuple[int, int]:
    """Writes a tree into a row at a column and a target slot. Returns where the next tree starts."""
    prompt, completions = len(tree.prompt), rows.last.shape[-1]
    end = column + len(tree)
    rows.tokens[row, column:end] = np.concatenate((tree.prompt, *tree.completions))
    rows.example[row, column:end] = example
    rows.position[row, column : column + prompt] = np.arange(prompt)
    rows.example_mask[row, example] = True
    root = column + prompt - 1  # the prompt's last column predicts every completion's first token
    rows.last[row, example] = root
    column += prompt
    for k, (completion, mask) in enumerate(zip(tree.completions, tree.masks, strict=True)):
        size = len(completion)
        columns, slots = slice(column, column + size), slice(slot, slot + size)
        rows.branch[row, columns] = k + 1
        rows.position[row, columns] = prompt + np.arange(size)
        rows.source[row, slots] = np.concatenate(([root], np.arange(column, column + size - 1)))
        rows.target[row, slots] = completion
        rows.owner[row, slots] = example * completions + k
        rows.mask[row, slots] = mask
        rows.last[row, example, k] = column + size - 1
        for name, values in tree.token_extras.items():
            rows.extras[name][row, slots] = values[k]
        column, slot = column + size, slot + size
    for name, value in tree.extras.items():
        rows.extras[name][row, example, : len(value)] = value
    return column, slot


def _empty_rows(rows: int, columns: int, slots: int, examples: int, completions: int, like: Tree | None) -> Rows:
    """Returns rows of padding, with the names and types of one tree's extras."""

    def full(value: int, size: int) -> np.ndarray:
        return np.full((rows, size), value, np.int32)

    extras: dict[str, np.ndarray] = {}
    if like is not None:
        extras |= {name: np.zeros((rows, examples, completions), v.dtype) for name, v in like.extras.items()}
        extras |= {name: np.zeros((rows, slots), v[0].dtype) for name, v in like.token_extras.items()}
    return Rows(
        tokens=full(0, columns),
        branch=full(0, columns),
        position=full(0, columns),
        example=full(-1, columns),
        source=full(0, slots),
        target=full(0, slots),
        owner=full(-1, slots),
        mask=np.zeros((rows, slots), bool),
        last=np.zeros((rows, examples, completions), np.int32),
        example_mask=np.zeros((rows, examples), bool),
        extras=extras,
    )


def _map_rows(function: Any, rows: Rows) -> Rows:
    """Applies a function to every array. Not jax.tree.map: packing runs in data threads, without JAX."""
    fields = {f.name: function(getattr(rows, f.name)) for f in dataclasses.fields(rows) if f.name != "extras"}
    return Rows(**fields, extras={name: function(value) for name, value in rows.extras.items()})


def _narrow(value: Any) -> np.ndarray:
    """Converts integers to int32, and floats to the device's type: float32, or float64 under x64."""
    array = np.asarray(value)
    if array.dtype.kind in "iu":
        return array.astype(np.int32)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype)) if array.dtype.kind == "f" else array
