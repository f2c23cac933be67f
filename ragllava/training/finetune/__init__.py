"""LoRA fine-tuning of a multimodal LLM."""
