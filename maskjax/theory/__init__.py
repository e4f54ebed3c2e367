"""Constructions from proofs: what a mask alone can make of random weights.

They sort and search over whole arrays. Arguments on several devices are gathered.
"""
