"""Templates of the cards written into model repositories; installed as `aiao_diffusers.hub_cards`."""
