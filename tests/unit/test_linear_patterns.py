"""Every regular expression of the package does linear work on any text.

``re`` holds the GIL, so a pattern that backtracks stops every thread of a worker. ``linear_patterns.py`` runs all
patterns in a process of its own, which ends when one text uses more processor time than linear work takes.
"""

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).with_name("linear_patterns.py")


@pytest.mark.unmeasured
@pytest.mark.parametrize(("what", "at_least"), [("patterns", 40), ("functions", 16)])
def test_patterns_and_redaction_are_linear(what, at_least, is_long):
    length, form = (256 * 1024, "long") if is_long else (32 * 1024, "short")
    command = [sys.executable, str(_SCRIPT), what, str(length), form]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"ended by {ended.returncode} at {ended.stdout[-200:]} {ended.stderr[-2000:]}"
    assert int(ended.stdout.split()[-1]) >= at_least
