"""New classes for a trained model: the old model's labels, some old data, and metrics of old and new classes apart."""
