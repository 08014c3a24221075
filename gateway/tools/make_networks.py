#!/usr/bin/env python3
"""Builds networks.bin: the address ranges of the networks that networks.toml lists.

    make_networks.py --date YYYYMMDD IPV4_CSV IPV6_CSV

The CSV files have the columns first address, last address, AS number and name, as the asn-ipv4.csv
and asn-ipv6.csv of the npm package @ip-location-db/asn do. Of them only ranges and numbers are
used; the names are those of networks.toml. Prints what became of each list.

The form, little-endian, all integers but the first two as LEB128 ("varint"):

    8 bytes   "SGNETS" and the version of the form, 16 bits
    4 bytes   date of the data, YYYYMMDD
    varint    AS numbers that follow, ascending, each as the difference to the one before
    varint    IPv4 ranges that follow
    varint    IPv6 ranges that follow, of the upper 64 bits of addresses
    32 bytes  SHA-256 of all bytes before

A range is three varints: addresses between the end of the one before and its start, its length
less one, and the index of its AS number. Ranges do not overlap; neighbours of one AS number are
one range.
"""

import argparse
import csv
import hashlib
import ipaddress
import pathlib
import struct
import sys
import tomllib

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "data"
VERSION = 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--date", required=True, type=int, help="of the data, YYYYMMDD")
    parser.add_argument("--list", default=FOLDER / "networks.toml", type=pathlib.Path)
    parser.add_argument("--out", default=FOLDER / "networks.bin", type=pathlib.Path)
    parser.add_argument("ipv4", type=pathlib.Path)
    parser.add_argument("ipv6", type=pathlib.Path)
    options = parser.parse_args()

    listed = {
        number
        for network in tomllib.loads(options.list.read_text())["network"]
        for number in network["asns"]
    }
    ipv4 = read(options.ipv4, listed, 0)
    ipv6 = read(options.ipv6, listed, 64)
    numbers = sorted({number for _, _, number in ipv4 + ipv6})
    for number in sorted(listed - set(numbers)):
        print(f"AS{number} has no addresses in the data", file=sys.stderr)

    index = {number: at for at, number in enumerate(numbers)}
    out = bytearray(b"SGNETS" + struct.pack("<HI", VERSION, options.date))
    out += varint(len(numbers))
    for before, number in zip([0] + numbers, numbers):
        out += varint(number - before)
    out += varint(len(ipv4)) + varint(len(ipv6))
    for ranges in (ipv4, ipv6):
        after = 0
        for first, last, number in ranges:
            out += varint(first - after) + varint(last - first) + varint(index[number])
            after = last + 1
    out += hashlib.sha256(out).digest()
    options.out.write_bytes(out)
    print(
        f"{options.out}: {len(out)} bytes, {len(numbers)} AS numbers, "
        f"{len(ipv4)} IPv4 and {len(ipv6)} IPv6 ranges"
    )


def read(path, listed, shift):
    """Sorted ranges of the listed AS numbers, neighbours of one number joined."""
    ranges = []
    with path.open(newline="", encoding="utf-8") as lines:
        for line in csv.reader(lines):
            number = int(line[2])
            if number in listed:
                first, last = (int(ipaddress.ip_address(line[at])) for at in (0, 1))
                # Shorter than a /64 no network is routed; what is below goes to its /64.
                ranges.append((first >> shift, last >> shift, number))
    ranges.sort()
    joined = []
    for first, last, number in ranges:
        if joined and first <= joined[-1][1]:
            first = joined[-1][1] + 1
            if first > last:
                continue
        if joined and joined[-1][2] == number and joined[-1][1] + 1 == first:
            joined[-1] = (joined[-1][0], last, number)
        else:
            joined.append((first, last, number))
    return joined


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return out


if __name__ == "__main__":
    main()
