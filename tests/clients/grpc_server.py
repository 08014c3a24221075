"""A gRPC server over plain-text HTTP/2: echo, a stream, an error with trailers. Messages are bytes."""

import sys
from concurrent import futures

import grpc


def echo(message, context):
    context.set_trailing_metadata((("x-served-by", "echo"),))
    return message


def count(message, context):
    for number in range(int(message)):
        yield b"%d" % number
    context.set_trailing_metadata((("x-served-by", "count"),))


def fail(_message, context):
    context.set_trailing_metadata((("x-served-by", "fail"),))
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota used up: 100 % of it")


server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=8),
    options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0)],
)
server.add_generic_rpc_handlers(
    [
        grpc.method_handlers_generic_handler(
            "test.Model",
            {
                "Echo": grpc.unary_unary_rpc_method_handler(echo),
                "Count": grpc.unary_stream_rpc_method_handler(count),
                "Fail": grpc.unary_unary_rpc_method_handler(fail),
            },
        )
    ]
)
server.add_insecure_port("127.0.0.1:" + sys.argv[1])
server.start()
server.wait_for_termination()
