"""Files, tables and hub datasets, read into memory or Arrow."""
