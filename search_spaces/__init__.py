"""Values worth trying per kernel variant, and the shapes of models: data, no code."""
