"""Programs for chips that are not there."""
