"""Constructions that prove: what a mask alone can make of random weights."""
