"""Values worth trying per kernel variant, the shapes of models, tables of known devices: no code."""
