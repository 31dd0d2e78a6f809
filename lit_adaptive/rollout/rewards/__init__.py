"""Rewards of completions, and the processes that compute them."""
