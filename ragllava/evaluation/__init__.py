"""Known worlds and metrics: the postcards archive, recall, the adaptive threshold."""
