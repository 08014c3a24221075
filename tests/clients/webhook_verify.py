"""Checks webhooks' signatures with the library that receivers use.

A scenario has the `secret`, the `headers` and the `body` as they came; it is seen as `verified`, with
the `type` of the message, or as the library's error.
"""

from scenarios import drive
from standardwebhooks import Webhook


def see(_base_url, _key, scenario):
    message = Webhook(scenario["secret"]).verify(scenario["body"], scenario["headers"])
    return {"verified": True, "type": message["type"]}


if __name__ == "__main__":
    drive(see)
