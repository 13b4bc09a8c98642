"""The HTTP contract, one file a resource."""
