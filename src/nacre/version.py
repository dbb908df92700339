"""The version, in one place (reading package metadata would cost 30 ms of import)."""

VERSION = "0.1.0"
