"""Engines: generate completions from the policy in training."""
