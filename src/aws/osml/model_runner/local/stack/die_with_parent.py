"""Runs a command that ends with its parent, however the parent ends: ``python die_with_parent.py PARENT_PID COMMAND…``.

A process that is killed cannot clean up after itself, so the kernel is asked to do it (``PR_SET_PDEATHSIG``). The
request survives ``exec``, so the command replaces this script and keeps its process id. Where the kernel has no such
call the command just runs. This file is started by its path and imports nothing outside the standard library.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Tie this process to the parent named first, then become the command that follows."""
    parent_pid, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent ended before the request was made: no signal will come
        sys.exit(f"the parent {parent_pid} is gone")
    os.execvp(command[0], command)  # noqa: S606 - the command is the caller's own


if __name__ == "__main__":
    main(sys.argv[1:])
