"""Training: data sets with hard negatives, LoRA fine-tuning with noise injection, evaluation and the gate."""
