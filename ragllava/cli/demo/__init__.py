"""`ragllava demo`: end to end on the postcards archive."""
