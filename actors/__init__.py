"""Who does it: actors and the parts they are made of."""
