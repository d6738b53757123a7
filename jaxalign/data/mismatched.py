"""Batches with mismatched completions (those of other prompts), from which KTO estimates its baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxalign.data.batches import Batches
from jaxalign.data.tokenize import truncate
from jaxalign.data.trees import Packed, Tree, pack
from jaxalign.errors import UserError
from jaxalign.masking import Rows


class WithMismatched(NamedTuple):
    """A packed batch, and the mismatched trees of the same step, packed likewise."""

    rows: Rows
    used: int
    mismatched: Packed


class Mismatched:
    """Batches that pair every example's prompt with a completion of another prompt.

    A completion is chosen from ``pool`` by (seed, step, example) alone, so it does not depend on packing or
    microbatches. The other prompt is another text, not only another example: after unpairing, a prompt occurs more
    than once. It is not the same text truncated elsewhere either (``Tree.prompt_key``).

    Args:
        batches: Batches of trees with one completion.
        trees: The trees of the batches.
        pool: Trees whose completions are chosen.
        seed: Seed of the choices.
        by_step: Whether to choose again at every step. False always chooses the same completion for an example, for
            evaluation.

    Raises:
        UserError: If the whole pool shares the prompt of an example.
    """

    def __init__(
        self, batches: Batches, trees: Sequence[Tree], pool: Sequence[Tree], seed: int = 0, *, by_step: bool = True
    ) -> None:
        self.batches, self.trees, self.pool, self.seed, self.by_step = batches, trees, pool, seed, by_step
        keys = [tree.prompt_key for tree in pool]
        self._order = sorted(range(len(keys)), key=keys.__getitem__)  # trees of one prompt are adjacent
        self._spans: dict[bytes, tuple[int, int]] = {}  # positions of a prompt in this order
        for place, number in enumerate(self._order):
            self._spans[keys[number]] = (self._spans.get(keys[number], (place, 0))[0], place + 1)
        if any(self._span(tree) == (0, len(pool)) for tree in trees):
            raise UserError(
                "all examples share one prompt, and KTO's baseline needs completions of other prompts. Give more "
                "prompts, or use the loss apo_zero_unpaired or bco."
            )
        firsts = {int(tree.prompt[0]) for tree in [*trees, *pool]}
        self._opening = sorted(firsts) if len(firsts) == 1 else []  # BOS, or the start of a template
        self._longest, self._most = max(map(len, trees)), max(tree.num_targets for tree in trees)

    def _span(self, tree: Tree) -> tuple[int, int]:
        """Returns where the tree's own prompt begins and ends in the order of the pool."""
        return self._spans.get(tree.prompt_key, (0, 0))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[WithMismatched]:
        return (self[step] for step in range(len(self)))

    def __getitem__(self, step: int) -> WithMismatched:
        rows, used = self.batches[step]
        examples = np.sort(rows.extras["index"][rows.example_mask][..., 0])  # packing changes their order
        number, size = rows.tokens.shape[:2]
        mismatched = pack(
            [self.mismatched_tree(step, int(example)) for example in examples],
            shapes=self.batches.shapes,
            rows_per_microbatch=size,
            max_microbatches=number,
            num_completions=1,
        )
        return WithMismatched(rows, used, mismatched)

    def mismatched_tree(self, step: int, example: int) -> Tree:
        """Returns an example's prompt with a completion of another one, truncated to the longest example's length."""
        tree = self.trees[example]
        start, stop = self._span(tree)
        generator = np.random.default_rng((self.seed, step if self.by_step else 0, example))
        place = int(generator.integers(len(self.pool) - (stop - start)))
        other = self.pool[self._order[place if place < start else place + stop - start]]
        prompt, (completion,) = truncate(
            tree.prompt.tolist(),
            [other.completions[0].tolist()],
            max_length=self._longest,
            max_completion_length=self._most,
            opening=self._opening,
        )
        return Tree.of(prompt, [completion], [other.masks[0][: len(completion)]])
