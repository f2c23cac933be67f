"""Archives that follow a bucket or a folder, and inboxes."""
