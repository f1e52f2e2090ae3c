"""Reading the Hub: repositories, what of them is a suspect, and a model's descendants."""
