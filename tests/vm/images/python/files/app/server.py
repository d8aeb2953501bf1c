"""Answers every connection with what it was given: arguments, user, working directory, greeting."""
import os
import signal
import socket
import sys

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with socket.create_server(("", 8000)) as server:
    print("listening", *sys.argv, flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            text = f"{sys.argv} {os.getuid()}:{os.getgid()} {os.getcwd()} {os.environ.get('GREETING')}\n"
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + text.encode())
