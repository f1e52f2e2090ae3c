"""The robustness benchmark; it imports the library, never the reverse."""
