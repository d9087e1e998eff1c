"""Attention as a tuned operation: its problems, what they are measured on, and its baselines."""
