"""grpcio against `grpc_server.py`. A scenario names its `call`: `echo` with `size`, `count`, `fail`."""

import os

import grpc

from scenarios import drive


def see(base_url, key, scenario):
    scheme, _, address = base_url.partition("://")
    options = [("grpc.max_receive_message_length", 64 << 20)]
    if scheme == "https":
        with open(os.environ["SSL_CERT_FILE"], "rb") as file:
            credentials = grpc.ssl_channel_credentials(root_certificates=file.read())
        channel = grpc.secure_channel(address, credentials, options)
    else:
        channel = grpc.insecure_channel(address, options)
    metadata = (("authorization", "Bearer " + key), ("x-run", scenario["name"]))
    with channel:
        return {"echo": echo, "count": count, "fail": fail}[scenario["call"]](
            channel, metadata, scenario
        )


def echo(channel, metadata, scenario):
    message = bytes(i % 251 for i in range(scenario["size"]))
    answer, call = channel.unary_unary("/test.Model/Echo").with_call(
        message, timeout=30, metadata=metadata
    )
    return {"same": answer == message, "code": call.code().name, **trailers(call)}


def count(channel, metadata, scenario):
    call = channel.unary_stream("/test.Model/Count")(
        b"%d" % scenario["size"], timeout=30, metadata=metadata
    )
    return {"messages": [int(m) for m in call], "code": call.code().name, **trailers(call)}


def fail(channel, metadata, _scenario):
    try:
        channel.unary_unary("/test.Model/Fail")(b"", timeout=30, metadata=metadata)
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details(), **trailers(error)}
    return {"code": "OK"}


def trailers(call):
    return {"trailers": {name: value for name, value in call.trailing_metadata()}}


drive(see)
