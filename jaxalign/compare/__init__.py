"""Methods side by side, from one start, in the testbed's world: arms, what they reach and what they pay."""
