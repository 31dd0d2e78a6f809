"""Groups of rollouts, kept to be trained on again."""
