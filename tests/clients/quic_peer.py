"""A QUIC client and server (aioquic), for DoQ and DoH3: `serve` or `connect` ADDRESS PORT ALPN …

connect ADDRESS PORT ALPN SERVER_NAME   prints `connected` and ends
serve ADDRESS PORT ALPN CHAIN KEY       prints `serving` and goes on
"""

import asyncio
import ssl
import sys

from aioquic.asyncio import connect, serve
from aioquic.quic.configuration import QuicConfiguration


async def main() -> None:
    what, address, port, alpn, *more = sys.argv[1:]
    if what == "serve":
        configuration = QuicConfiguration(is_client=False, alpn_protocols=[alpn])
        configuration.load_cert_chain(*more)
        await serve(address, int(port), configuration=configuration)
        print("serving", flush=True)
        await asyncio.Event().wait()
    configuration = QuicConfiguration(
        alpn_protocols=[alpn], server_name=more[0], verify_mode=ssl.CERT_NONE
    )
    async with connect(address, int(port), configuration=configuration) as client:
        await client.ping()
        print("connected", flush=True)


asyncio.run(asyncio.wait_for(main(), 60))
