"""Ends TLS on a loopback port and passes the bytes on, as a load balancer does.

tls_terminator.py CERTIFICATE KEY PORT      prints its own port
"""

import asyncio
import ssl
import sys

PIECE_BYTES = 1 << 18
LOOPBACK = "127.0.0.1"


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass  # one of the two has hung up
    finally:
        writer.close()


async def serve(certificate: str, key: str, port: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(LOOPBACK, port, limit=PIECE_BYTES)
        await asyncio.gather(copy(reader, back), copy(there, writer))

    server = await asyncio.start_server(connect, LOOPBACK, 0, ssl=context, limit=PIECE_BYTES, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
