"""Who scores: one file a kind of reward."""
