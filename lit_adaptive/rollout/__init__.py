"""Experience: environments, the streams they make, and the episodes that are played in them."""
