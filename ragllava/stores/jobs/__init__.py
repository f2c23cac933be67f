"""What goes into jobs and what comes out of them."""
