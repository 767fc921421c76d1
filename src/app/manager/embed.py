#!/usr/bin/python3
"""embed: a JSON file, checked and without its blanks, as a C string.

Usage: embed.py FILE.json NAME
"""
import json
import sys


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        text = json.dumps(json.load(file), separators=(",", ":"), ensure_ascii=True).encode()
    print(f"extern const char {sys.argv[2]}[];\nconst char {sys.argv[2]}[] = {{")
    for at in range(0, len(text), 24):
        print("    " + " ".join(f"{byte}," for byte in text[at:at + 24]))
    print("    0,\n};")


if __name__ == "__main__":
    main()
