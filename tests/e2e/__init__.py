"""The whole house at work."""
