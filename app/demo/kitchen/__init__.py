"""The demo of function calls: a kitchen's functions, as training data and held-out requests."""
