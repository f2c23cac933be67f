"""From questions to answers with evidence."""
