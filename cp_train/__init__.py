"""One concept in, one adapter version out."""
