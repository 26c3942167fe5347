"""The packages that only the embedded stack needs."""

import importlib.util

from aws.osml.model_runner.exceptions import ConfigurationError

PACKAGES = ("ministack", "PIL", "rich", "yaml")


def require_local_extra() -> None:
    """Raise ConfigurationError that says what to install, unless everything that the embedded stack needs is there."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} is missing: pip install '.[local]' in a clone of this project")
