"""Put on PYTHONPATH, this makes `ddgen` take this machine for a very slow one, and every model for a large one."""

from ddgen.app import estimate

estimate.SMALL = 0
estimate.measured = lambda device: 1e6  # operations a second
