"""What formats cost in accuracy: recipes on synthetic data, real weights and real activations."""
