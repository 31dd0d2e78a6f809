"""Language models: network, recipes, probes, checkpoints, and the module that trains them."""
