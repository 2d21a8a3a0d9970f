"""From a model's name and addresses to a finished folder."""
