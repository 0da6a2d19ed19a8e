"""How a controlled response is obtained: one file a method."""
