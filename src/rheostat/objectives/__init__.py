"""Pure training losses on log-probabilities: one file an objective."""
