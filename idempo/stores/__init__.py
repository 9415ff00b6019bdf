"""Stores: each a module of its own, imported only where it is used."""
