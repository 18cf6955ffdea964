"""Settings of the whole suite."""

import os

# The test processes share the cores among themselves: with more threads than cores each waits for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
