"""Deliberate faults, and a script that shows that the tests find each of them."""
