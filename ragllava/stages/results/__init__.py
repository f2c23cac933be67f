"""Result files, reports and the outbox."""
