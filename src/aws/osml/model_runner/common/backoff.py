"""The back-off of all retries: a wait that doubles, with jitter."""

import random

# More doublings than any maximum allows; a larger power of two overflows a float.
_MAX_DOUBLINGS = 64
FULL_JITTER = (0.0, 1.0)
HALF_JITTER = (0.5, 1.0)


def backoff_s(
    attempt: int,
    base_s: float,
    longest_s: float,
    rng: random.Random | None = None,
    jitter: tuple[float, float] = FULL_JITTER,
) -> float:
    """Return the wait in seconds after try number ``attempt``, counted from 0.

    The wait doubles from ``base_s`` up to ``longest_s``. A random factor from the range ``jitter`` spreads the tries of
    many callers; without ``rng`` the factor is 1.
    """
    ceiling_s = min(longest_s, base_s * 2.0 ** min(attempt, _MAX_DOUBLINGS))
    return ceiling_s if rng is None else ceiling_s * rng.uniform(*jitter)
