"""Engines: generate completions from the policy that is trained."""
