"""The engine: from any task to the parameters worth keeping; `task.Task` is all that it asks."""
