"""What training and serving stand on, and every border to the outside."""
