"""Feature definitions and the exact window engine: numpy and numba only, no clock, no I/O."""
