"""Sends a line and waits for it to come back: [-mapped] [-count=N] MODE HOST:PORT LINE. The same as test/clients/client."""
import errno
import json
import socket
import sys


def join(address):
    host, port = address[:2]
    return "[%s]:%d" % (host, port) if ":" in host else "%s:%d" % (host, port)


class Failed(Exception):
    pass


def call(name, function, *args):
    try:
        return function(*args)
    except socket.timeout:
        raise Failed(name + " timeout")
    except OSError as e:
        raise Failed(name + " " + errno.errorcode.get(e.errno, str(e)))


def exchange(sock, mode, address, line, result):
    if mode == "udp-unconnected":
        call("sendto", sock.sendto, line, address)
        reply, sender = call("recvfrom", sock.recvfrom, 65536)
        result["from"], result["reply"] = join(sender), reply.decode()
        return
    call("connect", sock.connect, address)
    result["peer"] = join(call("getpeername", sock.getpeername))
    call("send", sock.sendall, line)
    if mode == "tcp":
        result["reply"] = call("recv", sock.makefile().readline)
    else:
        reply, sender = call("recvfrom", sock.recvfrom, 65536)
        result["from"], result["reply"] = join(sender), reply.decode()


def main(args):
    mapped, count = False, 1
    while args[0].startswith("-"):
        flag = args.pop(0)
        if flag == "-mapped":
            mapped = True
        elif flag.startswith("-count="):
            count = int(flag[7:])
        else:
            sys.exit("unknown flag " + flag)
    mode, target, line = args
    host, port = target.rsplit(":", 1)
    host = host.strip("[]")
    if mapped:
        host = "::ffff:" + host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM if mode == "tcp" else socket.SOCK_DGRAM

    sock = None
    for _ in range(count):
        if sock is None or mode != "udp-unconnected":
            sock = socket.socket(family, kind)
            sock.settimeout(5)
        result = {}
        try:
            exchange(sock, mode, (host, int(port)), (line + "\n").encode(), result)
        except Failed as e:
            result["error"] = str(e)
        print(json.dumps(result), flush=True)


main(sys.argv[1:])
