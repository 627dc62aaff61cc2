"""Training state in, a folder of tensors by parameter name out: it restores at any number of workers and any ZeRO stage."""
