"""Shipped test doubles and conformance suites, one per driver interface. Imported only by tests."""
