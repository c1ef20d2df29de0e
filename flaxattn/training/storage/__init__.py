"""What is on disk: files written whole, JSON that is checked, folders that can be trusted."""
