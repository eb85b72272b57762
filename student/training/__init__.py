"""How the student learns: alone, or as one of a group of workers."""
