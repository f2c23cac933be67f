"""The noise ablation: the effect of noise in training on answers from wrong evidence."""
