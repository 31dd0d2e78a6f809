"""Pictures and tables of a run, made from its files."""
