"""A small world of instructions whose gold reward is known, so that gold and proxy reward can be compared."""

from jaxalign.testbed.annotators import Judge, Thumbs, prefer
from jaxalign.testbed.gold import Gold, Weights, gold, read
from jaxalign.testbed.world import Answer, Instruction, World, make_world

__all__ = [
    "Answer",
    "Gold",
    "Instruction",
    "Judge",
    "Thumbs",
    "Weights",
    "World",
    "gold",
    "make_world",
    "prefer",
    "read",
]
