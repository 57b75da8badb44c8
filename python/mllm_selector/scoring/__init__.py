"""What scores samples: batches, shards, and the check against torch."""
