"""Plain NumPy transcriptions, written apart from the library, to hold it against."""
