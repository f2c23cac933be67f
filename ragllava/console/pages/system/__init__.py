"""The system as a whole, and who may use it."""
