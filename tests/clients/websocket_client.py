"""A WebSocket client against the echo server: `count` messages of `size` bytes, text and binary.

The library's asyncio client, not its threaded one: that reads and writes one TLS object from two
threads, and now and then its request never leaves.
"""

import asyncio
import os
import ssl

from websockets.asyncio.client import connect

from scenarios import drive


async def echo(base_url, key, scenario):
    ca_file = os.environ.get("SSL_CERT_FILE")
    context = ssl.create_default_context(cafile=ca_file) if ca_file else None
    url = base_url.replace("http", "ws", 1) + scenario["path"]
    headers = {"authorization": "Bearer " + key}
    echoed = 0
    async with connect(
        url, ssl=context, additional_headers=headers, max_size=8 << 20, proxy=None
    ) as socket:
        for number in range(scenario["count"]):
            text = ("%d é " % number) * (scenario["size"] // 5 + 1)
            message = text if number % 2 else text.encode()
            await socket.send(message)
            async with asyncio.timeout(20):
                echoed += await socket.recv() == message
    return {"echoed": echoed}


def see(base_url, key, scenario):
    return asyncio.run(echo(base_url, key, scenario))


drive(see)
