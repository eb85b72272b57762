"""Weights in and out: Qwen2.5, the authors' layout, Hugging Face folders."""
