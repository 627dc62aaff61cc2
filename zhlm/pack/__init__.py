"""Raw files -> token blocks: the config's streams come in; per stream, committed shards of blocks and the held-out documents go out."""
