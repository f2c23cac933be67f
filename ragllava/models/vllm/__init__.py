"""Models that an OpenAI-compatible endpoint computes, and the gate that decides whether they may serve."""
