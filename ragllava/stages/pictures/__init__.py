"""One stored picture for people: its thumbnail, its caption, its duplicates."""
