"""The client side of a run: what it will take, whether it can work, and sending it to a cluster. In: a run's config. Out: a plan to read,
one-line errors before anything starts, and a Ray job that is followed to its end. Nothing here needs torch; only `jobs` talks to Ray."""
