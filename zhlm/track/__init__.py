"""Rows of metrics.jsonl in, the same numbers out where people look: TensorBoard's file, Prometheus gauges, W&B, MLflow."""
