"""What one does with a trained model on the command line, a file for each command."""
