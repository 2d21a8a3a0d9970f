"""The server's side: the model repository, the embedded server, the python backend."""
