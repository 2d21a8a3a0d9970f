"""HEALTHCHECK of the serving image: status 0 when every model answers (see readiness.py)."""

import http.client
import sys

try:
    connection = http.client.HTTPConnection("127.0.0.1", 8003, timeout=4)
    connection.request("GET", "/ready")
    answer = connection.getresponse()
    print(answer.read().decode())
    sys.exit(answer.status != 200)
except OSError as error:
    print(f"not serving yet: {error}")
    sys.exit(1)
