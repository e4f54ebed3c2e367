"""Constructions from proofs: what a mask alone can make of random weights."""
