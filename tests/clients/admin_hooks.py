"""What schemathesis has to know beside the document: lines of JSON, and addresses in the one form that
they have."""

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
