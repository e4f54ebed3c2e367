"""Keeps pytest out of this folder: nothing here is a test."""

collect_ignore_glob = ["*"]
