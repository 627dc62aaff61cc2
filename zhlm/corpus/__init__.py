"""Sources of a corpus: paths, globs, folders and datasets come in; parts of bounded size, and their documents in batches, go out."""
