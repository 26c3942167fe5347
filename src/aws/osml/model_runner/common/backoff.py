"""How long to wait before another try."""

import random

# More doublings than any maximum allows; a larger power of two overflows a float.
_MOST_DOUBLINGS = 64
FULL_JITTER = (0.0, 1.0)
HALF_JITTER = (0.5, 1.0)


def backoff_s(
    attempt: int,
    base_s: float,
    longest_s: float,
    rng: random.Random | None = None,
    jitter: tuple[float, float] = FULL_JITTER,
) -> float:
    """Return the wait after try number ``attempt``, counted from 0, in seconds.

    The wait doubles from ``base_s`` up to ``longest_s``. A factor from the range ``jitter`` spreads the tries of many
    callers; without ``rng`` there is none.
    """
    ceiling_s = min(longest_s, base_s * 2.0 ** min(attempt, _MOST_DOUBLINGS))
    return ceiling_s if rng is None else ceiling_s * rng.uniform(*jitter)
