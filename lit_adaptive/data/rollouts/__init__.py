"""Rollouts as a datamodule: collect, mix with replay, serve minibatches."""
