"""Sans-I/O codecs: bytes to values and back, for every protocol and format that Nacre speaks."""
