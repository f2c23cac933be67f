"""From files to embedded images."""
