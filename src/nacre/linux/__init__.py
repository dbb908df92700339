"""Thin, typed wrappers over kernel interfaces. They decide nothing."""
