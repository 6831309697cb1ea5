"""This release's number: what an engine folder and a plugin library are stamped with."""

VERSION = "0.1.0"
