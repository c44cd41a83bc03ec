"""What rollback a config means, found before training."""
