"""Hamming coding of whole files: encode, decode, check, fix, error. docs/hamming.md states code and file format."""
