"""Downloads what each line of the input asks for, URL CHECKSUM CACHE PLAIN|UNPACK, and prints where it is."""

import sys

import modulekit as mk

print("ready", flush=True)
for line in sys.stdin:
    url, checksum, cache, form = line.split()
    print(mk.data.download(url, checksum, cache, progress=False, unpack=form == "UNPACK"), flush=True)
