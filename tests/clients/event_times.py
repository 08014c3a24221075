"""When the events of a stream arrive, over HTTP/1.1 and HTTP/2.

A scenario names the HTTP `version`, the `path`, and `provider`, the directive for the fake provider.
Seen are the milliseconds from the first event to each, and the body.
"""

import time

import httpx
from scenarios import drive


def see(base_url, key, scenario):
    headers = {"authorization": "Bearer " + key, "x-provider": scenario["provider"]}
    body = {"model": "still-1", "stream": True, "messages": [{"role": "user", "content": "Hi."}]}
    times, data = [], b""
    with httpx.Client(http2=scenario["version"] == "2", timeout=60) as client:
        with client.stream("POST", base_url + scenario["path"], headers=headers, json=body) as answer:
            for piece in answer.iter_raw():
                ended = data.count(b"\n\n")
                data += piece
                now = time.perf_counter()
                times += [now] * (data.count(b"\n\n") - ended)
            return {
                "status": answer.status_code,
                "version": answer.http_version,
                "times_ms": [(at - times[0]) * 1000 for at in times],
                "body": data.decode(),
            }


drive(see)
