#!/usr/bin/env python3
"""Writes blocks.inc beside this file from the golden file of the integer-only BlockDialect
reference (format "nibble-blockdialect-golden-1"):

    python3 convert.py blockdialect_golden.json

blocks.inc is C: initialisers of the arrays `blocks` and `dots` of tests/unit/test_dialect.c. Inputs
are the bits of their binary32 values, so that -0, Inf and NaN survive; NaN is the quiet one.
"""

import json
import os
import struct
import sys


def bits(text):
    return "0x%08x" % struct.unpack("<I", struct.pack("<f", float.fromhex(text)))


def encoded(block):
    if block is None:
        return "{.codes = NULL}"
    return '{%d, %d, %d, %d, %d, %d, "%s", "%s"}' % (
        block["SE"], block["exp"], block["q_max"], block["id"], block.get("n_even", -1),
        block.get("n_odd", -1), block["codes"], block.get("packed", ""))


def main():
    doc = json.load(open(sys.argv[1]))
    if doc["format"] != "nibble-blockdialect-golden-1":
        sys.exit("unknown format " + doc["format"])
    lines = ["/* Made by convert.py: name, n, two-stage, two-stage bd5, least error, values. */",
             "static const golden_block blocks[] = {"]
    for c in doc["cases"]:
        lines.append('{"%s", %d,' % (c["name"], c["n"]))
        lines += [" %s," % encoded(c.get(rule)) for rule in ("two_stage", "two_stage_bd5", "mse")]
        x = [bits(v) for v in c["x"]]
        rows = [",".join(x[i:i + 8]) for i in range(0, len(x), 8)]
        lines.append(" {%s}}," % ",\n  ".join(rows))
    lines += ["};", "static const golden_dot dots[] = {"]
    lines += ['{"%s", "%s", %d, %s},' % (d["a"], d["w"], d["sum"], d["value"]) for d in doc["dots"]]
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "blocks.inc")
    with open(path, "w") as f:
        f.write("\n".join(lines + ["};", ""]))


if __name__ == "__main__":
    main()
