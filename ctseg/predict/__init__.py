"""One case, and a folder of cases, over anything that runs the network."""
