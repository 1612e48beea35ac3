"""The user study: making it, serving it, scoring it."""
