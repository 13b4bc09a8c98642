"""Adapter versions in, images out."""
