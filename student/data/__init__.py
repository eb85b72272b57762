"""Samples, pictures and features of a store as what the student is shown, and when."""
