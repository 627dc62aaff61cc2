"""A YAML file and overrides in, one frozen RunConfig out: what a run is, checked before anything starts."""
