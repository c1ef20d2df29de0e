"""Trees of parameters: fresh, averaged, frozen, and as named arrays in a file."""
