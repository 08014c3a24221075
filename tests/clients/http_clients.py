"""Plain HTTP clients of Python, each request on a fresh connection.

A scenario names its `client`, `method`, `path`, `headers` (a list of pairs) and `body` (text), and
optionally `body_file`, and a `base_url` and a `key` of its own. Seen are status, HTTP version, length and SHA-256 of the body as it came over
the wire, not decoded.
"""

import asyncio
import hashlib
import os
import ssl

from scenarios import drive

CA_FILE = os.environ.get("SSL_CERT_FILE")


def see(base_url, key, scenario):
    base_url, key = scenario.get("base_url", base_url), scenario.get("key", key)
    headers = [("authorization", "Bearer " + key)] + [tuple(h) for h in scenario.get("headers", [])]
    body = scenario.get("body", "").encode()
    if "body_file" in scenario:
        with open(scenario["body_file"], "rb") as file:
            body = file.read()
    client, _, variant = scenario["client"].partition(":")
    call = {"httpx": httpx_call, "requests": requests_call, "aiohttp": aiohttp_call,
            "curl_cffi": curl_cffi_call}[client]
    url = base_url + scenario["path"]
    status, version, data = call(variant, scenario.get("method", "GET"), url, headers, body)
    return {
        "status": status,
        "version": version,
        "length": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "body": data[:4096].decode("utf-8", "replace"),
    }


def httpx_call(variant, method, url, headers, body):
    import httpx

    with httpx.Client(http2=variant == "h2", timeout=60) as client:
        with client.stream(method, url, headers=headers, content=body or None) as response:
            data = b"".join(response.iter_raw())
        return response.status_code, response.http_version, data


def requests_call(_variant, method, url, headers, body):
    import requests

    with requests.Session() as session:
        response = session.request(
            method, url, headers=dict(headers), data=body or None, stream=True, timeout=60
        )
        data = b"".join(response.raw.stream(65536, decode_content=False))
        return response.status_code, "HTTP/1.1", data


def aiohttp_call(_variant, method, url, headers, body):
    import aiohttp

    async def call():
        context = ssl.create_default_context(cafile=CA_FILE) if CA_FILE else True
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            async with session.request(method, url, headers=headers, data=body or None) as response:
                return response.status, "HTTP/1.1", await response.read()

    return asyncio.run(call())


def curl_cffi_call(variant, method, url, headers, body):
    from curl_cffi import requests as curl_requests

    with curl_requests.Session(impersonate=variant, verify=CA_FILE or True) as session:
        response = session.request(method, url, headers=dict(headers), data=body or None, timeout=60)
        version = {2: "HTTP/1.1", 3: "HTTP/2"}.get(response.http_version, str(response.http_version))
        return response.status_code, version, response.content


drive(see)
