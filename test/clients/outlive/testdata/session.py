"""Asks one line after the other until its input ends: udp-once|udp-loose|tcp HOST PORT. A report for each, as JSON."""
import json
import socket
import sys
import threading
import time

kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()

sock = None
if kind != "tcp":
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(1)
if kind == "udp-once":
    sock.connect((host, port))


def ask(line, report):
    if kind == "tcp":
        with socket.create_connection((host, port), 10) as conn:
            report["peer"] = "%s:%d" % conn.getpeername()
            conn.sendall(line)
            report["reply"] = conn.makefile().readline()
        return
    if kind == "udp-once":
        report["peer"] = "%s:%d" % sock.getpeername()
        sock.send(line)
    else:
        sock.sendto(line, (host, port))
    reply, sender = sock.recvfrom(65536)
    report["reply"], report["from"] = reply.decode(), "%s:%d" % sender


n = 0
while not ended.is_set():
    report = {}
    try:
        ask(b"python-%d\n" % n, report)
    except socket.timeout:
        report["error"] = "recv timeout"
    except OSError as e:
        report["error"] = str(e)
    print(json.dumps(report), flush=True)
    n += 1
    time.sleep(0.02)
