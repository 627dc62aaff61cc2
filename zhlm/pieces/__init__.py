"""A base's tokenizer and a corpus come in; which kind it is, the pieces it lacks, and the same tokenizer with them go out."""
