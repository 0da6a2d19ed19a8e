"""Where work runs: one file an executor."""
