"""What the models learn: labels and trainings."""
