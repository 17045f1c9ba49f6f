"""Who holds what: the book of committed resources, and the fenced transactions that make it durable.

book.py is arithmetic in memory; the rest talks to a store. Nothing here decides who should get anything.
"""
