"""Serve: in goes a run's export/merged folder, out comes an OpenAI-compatible HTTP server (ray.serve.llm, vLLM) until it is stopped."""
