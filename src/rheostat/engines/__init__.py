"""How text is generated: one file an engine."""
