"""How many examples a property is tried with: all of them with ``--long``, and a quarter of them otherwise."""

from hypothesis import settings

_IN_A_LONG_RUN = 100
_SHARES = {"short": 0.25, "long": 1.0}


def choose_form(is_long: bool) -> None:
    """Set how many examples the properties get that do not say it; call this before tests are imported."""
    for name, share in _SHARES.items():
        settings.register_profile(name, max_examples=round(share * _IN_A_LONG_RUN), deadline=None)
    settings.load_profile("long" if is_long else "short")


def examples(count: int, least: int = 30) -> settings:
    """`@examples(600)`: try a property with as many examples in a long run, and with its share of them in a short one.

    It is at least ``least``, or ``count`` where that is less.
    """
    share = settings.default.max_examples / _IN_A_LONG_RUN
    return settings(max_examples=min(count, max(least, round(share * count))))
