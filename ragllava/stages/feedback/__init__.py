"""From what people say about answers to labels."""
