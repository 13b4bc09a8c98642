"""What a version is judged and shown by."""
