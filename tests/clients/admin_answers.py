"""Holds what the admin endpoint answers to its own OpenAPI document.

Arguments: base URL, token. Asks every operation that only looks, with names of accounts, clusters
and models that the gateway itself lists, and validates each answer. Prints a JSON line for each with
its status; one that is not as the document says ends it.
"""

import json
import sys
import urllib.error
import urllib.parse
import urllib.request

import jsonschema

BASE, TOKEN = sys.argv[1], sys.argv[2]
# Answers without an end.
STREAMS = {"/v1/events"}
NAMES_MAX = 50


def get(path):
    request = urllib.request.Request(BASE + path, headers={"authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers.get_content_type(), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get_content_type(), error.read().decode()


def check(document, path, concrete):
    status, kind, body = get(concrete)
    responses = document["paths"][path]["get"]["responses"]
    assert str(status) in responses, f"{concrete}: {status} is not in the document"
    content = responses[str(status)]["content"]
    assert kind in content, f"{concrete}: {kind} is not in the document"
    schema = {**content[kind]["schema"], "components": document["components"]}
    values = [body]
    if kind == "application/json":
        values = [json.loads(body)]
    elif kind == "application/x-ndjson":
        values = [json.loads(line) for line in body.splitlines()]
    for value in values:
        jsonschema.validate(value, schema, jsonschema.Draft202012Validator)
    print(json.dumps({"path": path, "asked": concrete, "status": status}), flush=True)
    return values


def main():
    document = json.loads(get("/openapi.json")[2])
    listed = json.loads(get("/v1/accounts?limit=1000")[2])["accounts"]
    exchanges = json.loads(get("/v1/exchanges?limit=1000")[2])["exchanges"]
    names = {
        "account": {one["account"] for one in listed}
        | {one["account"] for one in exchanges if one.get("account")},
        "cluster": {one["cluster"] for one in json.loads(get("/v1/clusters")[2])["clusters"]},
        "model": {one["model"] for one in json.loads(get("/v1/models")[2])["models"]},
    }
    for path, operations in document["paths"].items():
        if "get" not in operations or path in STREAMS:
            continue
        named = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        if not named:
            check(document, path, path)
        for name in sorted(names[named[0]])[:NAMES_MAX] if named else []:
            quoted = urllib.parse.quote(name, safe="")
            check(document, path, path.replace("{%s}" % named[0], quoted))


main()
