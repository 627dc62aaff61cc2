"""What of a model is trained: LoRA beside frozen weights, new rows alone, groups with rates of their own."""
