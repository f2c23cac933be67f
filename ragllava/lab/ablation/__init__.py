"""The noise ablation: what noise in training is worth when the evidence is wrong."""
