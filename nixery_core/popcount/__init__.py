"""Popularity counted from what a binary cache tells of store paths: in how many closures each package is."""
