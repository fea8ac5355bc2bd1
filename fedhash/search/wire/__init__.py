"""The bytes of queries and answers: protobuf, and every rule that its schema cannot say.

1. Sizes are bounded before anything is parsed.
2. One message has one byte form: what does not re-encode to itself is refused (unknown fields,
   fields out of order or twice, default values written out).
3. Every fault is a MessageError that names the field.

`search.proto` is the schema; `make proto` writes `search_pb2.py` and its types.
"""
