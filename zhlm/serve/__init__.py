"""Serve: in goes a run's export/merged folder, out comes an HTTP server until it is stopped: for a causal model OpenAI-compatible
(ray.serve.llm, vLLM), for others one of fill-mask or text-to-text (replica.py and what it is made of)."""
