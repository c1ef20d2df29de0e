"""Trees of parameters: averaged, frozen, adapted by low rank."""
