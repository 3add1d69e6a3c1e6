"""The demo: a fictional company's help desk, as training data, held-out questions and a style guide."""
