"""What all buckets share: what a key may be, and what may be put under it."""
