"""Training: data sets with hard negatives, noise injection, LoRA fine-tuning, and the recipe of the mini models."""
