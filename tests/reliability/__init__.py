"""The guarantees, attacked: each part in a short form for `make test` and a long `make torture`."""
