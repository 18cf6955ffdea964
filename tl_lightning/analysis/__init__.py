"""Measures of similarity, transferability and attribution: arrays in, numbers out."""
