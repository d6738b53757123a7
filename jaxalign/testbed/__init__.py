"""A small world of instructions whose gold reward is known, so that gold and proxy reward can be compared."""

from jaxalign.testbed.annotators import Judge as Judge
from jaxalign.testbed.annotators import Thumbs as Thumbs
from jaxalign.testbed.annotators import prefer as prefer
from jaxalign.testbed.gold import Gold as Gold
from jaxalign.testbed.gold import Weights as Weights
from jaxalign.testbed.gold import gold as gold
from jaxalign.testbed.gold import read as read
from jaxalign.testbed.world import Answer as Answer
from jaxalign.testbed.world import Instruction as Instruction
from jaxalign.testbed.world import World as World
from jaxalign.testbed.world import make_world as make_world
