"""Publishing on the Hub: the checks before a push, the push, and the cards it writes."""
