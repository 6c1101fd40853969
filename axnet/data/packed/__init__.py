"""Packed films: a data set as `axnet prepare` leaves it, in shards that are read at random, film by film.

A folder of Arrow files (shard-00000.arrow ...), films.parquet with the labels, and manifest.json, which says all the
rest and makes the folder one: it is written last.
"""
