"""A folder or hub name in, a model of the right size out, with what is trained of it marked; and its shape without loading it."""
