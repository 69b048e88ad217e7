"""The library in memory: images in, features or classes out, without files."""
