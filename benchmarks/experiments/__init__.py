"""What is measured, one experiment a module; beside each the child process that it starts."""
