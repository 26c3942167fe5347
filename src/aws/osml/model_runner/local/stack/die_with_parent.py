"""Runs a command that ends with its parent: ``python die_with_parent.py PARENT_PID COMMAND…``.

A parent that is killed cannot end its children, so the kernel does it (``PR_SET_PDEATHSIG``). The setting survives
``exec``, so the command replaces this script and keeps its process id. A kernel other than Linux does not have this
setting; there the command only runs. This file is started by its path, so it imports only the standard library.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Set the signal for the parent in ``arguments[0]``, then execute the command in the other arguments."""
    parent_pid, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent ended before the signal was set, so the kernel will not send it
        sys.exit(f"the parent {parent_pid} has ended")
    os.execvp(command[0], command)  # noqa: S606 - the command is the caller's own


if __name__ == "__main__":
    main(sys.argv[1:])
