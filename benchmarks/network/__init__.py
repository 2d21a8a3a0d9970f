"""A folder of scans over links of 1 and 10 Gbit/s, by windows and by whole scans, beside the server's own machine."""
