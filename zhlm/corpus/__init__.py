"""Files of a corpus: paths, globs and folders come in; documents with their file and line go out, in batches of bounded size."""
