"""Suites: what a file asks for, its runs, their results and tables."""
