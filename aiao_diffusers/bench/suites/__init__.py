"""Shipped suites, as YAML."""
