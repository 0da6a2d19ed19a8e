"""What a dial means: one file an attribute, its name the dial's name."""
