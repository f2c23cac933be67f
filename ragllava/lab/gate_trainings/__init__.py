"""Real trainings of the reranker through the gate, and what is measured on questions that nobody trained on."""
