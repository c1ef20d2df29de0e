"""English texts of our own writing, seeded: what the tasks train on where no files are named."""
