"""A page on which films are dropped and read, served by this machine: `axnet serve`, the extra [serve].

Starlette and uvicorn carry it. A film comes as the body of one request and is gone when that is answered: it is decoded
in a process of its own (decoding), read by the one model in its turn (reading), and the answer holds all that the page
shows and the report to download (answer).
"""
