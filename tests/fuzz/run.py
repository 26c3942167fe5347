"""Looks for bytes that break a parser: ``python tests/fuzz/run.py TARGET [SECONDS]``, TARGET one of ``targets.py``.

Needs atheris (``pip install atheris``; a wheel exists for Linux and macOS). Inputs that reach new code are
kept below .cache/fuzz; copy the valuable ones to tests/fuzz/corpus. A crash is written there as well, and ends the run
with a status other than 0.
"""

import logging
import random
import sys
from pathlib import Path

import atheris
import structlog
from osgeo import gdal

_SEEDS_PART = 0.5
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

with atheris.instrument_imports(include=["aws.osml.model_runner", "json", "geojson"]):
    from fuzz.targets import TARGETS

from fuzz.seeds import damaged, seeds  # noqa: E402 - after the parsers, so that those are instrumented


def main() -> None:
    gdal.PushErrorHandler("CPLQuietErrorHandler")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    name, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "600"
    kept = ROOT / ".cache" / "fuzz" / name
    kept.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (kept / f"seed-{number}").write_bytes(seed)
    limits = [
        "-max_len=262200",
        "-timeout=5",
        "-rss_limit_mb=1024",
        f"-max_total_time={seconds}",
    ]
    words = ROOT / "tests" / "fuzz" / f"{name}.dict"
    options = [f"-artifact_prefix={kept.parent}/{name}-", *([f"-dict={words}"] if words.exists() else [])]
    corpus = [str(kept), *(str(path) for path in [ROOT / "tests" / "fuzz" / "corpus" / name] if path.exists())]

    def mutated(data: bytes, max_size: int, number: int) -> bytes:
        # Coverage does not show what a regular expression matched, so seeds are damaged again and again.
        rng = random.Random(number)
        return (
            damaged(name, rng)[:max_size]
            if seeds(name) and rng.random() < _SEEDS_PART
            else atheris.Mutate(data, max_size)
        )

    atheris.Setup([sys.argv[0], *limits, *options, *corpus], TARGETS[name], custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
