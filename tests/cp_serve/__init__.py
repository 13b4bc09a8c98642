"""Serving: real engine, real base models, real registry, real HTTP."""
