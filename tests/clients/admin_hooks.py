"""What schemathesis has to know beside the document: lines of JSON, addresses in the one form that
they have, and that what was seen last was not seen before what was seen first."""

import json

import schemathesis
from hypothesis import strategies


@schemathesis.serializer("application/x-ndjson")
def lines(_context, value):
    return json.dumps(value).encode() + b"\n"


def is_canonical(address):
    return getattr(address, "ipv4_mapped", None) is None


schemathesis.openapi.format(
    "canonical-ip", strategies.ip_addresses().filter(is_canonical).map(str)
)


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@schemathesis.hook
def map_body(context, body):
    if context.operation.path != "/v1/sensor/reports" or not isinstance(body, dict):
        return body
    for entries in (body.get("lookups"), body.get("contacts")):
        for entry in entries if isinstance(entries, list) else []:
            if not isinstance(entry, dict):
                continue
            first, last = entry.get("first_ms"), entry.get("last_ms")
            if is_number(first) and is_number(last) and first > last >= 0:
                entry["first_ms"], entry["last_ms"] = last, first
    return body
