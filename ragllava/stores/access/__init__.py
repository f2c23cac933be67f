"""Who may do what through the HTTP API: keys, the boundary between archives, quotas, the audit; files and batches."""
