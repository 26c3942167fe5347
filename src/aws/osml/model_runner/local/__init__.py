"""The embedded stack: what the cloud does, as one tree of processes on a laptop."""
