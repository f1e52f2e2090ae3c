"""The mark: its key, the sites and patterns that it chooses, and its public record."""
