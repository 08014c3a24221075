"""A WebSocket client against the echo server: `count` messages of `size` bytes, text and binary."""

import os
import ssl

from websockets.sync.client import connect

from scenarios import drive


def see(base_url, key, scenario):
    ca_file = os.environ.get("SSL_CERT_FILE")
    context = ssl.create_default_context(cafile=ca_file) if ca_file else None
    url = base_url.replace("http", "ws", 1) + scenario["path"]
    headers = {"authorization": "Bearer " + key}
    echoed = 0
    with connect(
        url, ssl=context, additional_headers=headers, max_size=8 << 20, proxy=None
    ) as socket:
        for number in range(scenario["count"]):
            text = ("%d é " % number) * (scenario["size"] // 5 + 1)
            message = text if number % 2 else text.encode()
            socket.send(message)
            echoed += socket.recv(timeout=20) == message
    return {"echoed": echoed}


drive(see)
