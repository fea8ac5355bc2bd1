from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Query(_message.Message):
    __slots__ = ("agreement", "requester", "purpose", "nonce", "asked_at_ms", "deadline_ms", "release", "modality", "code", "weights", "k", "radius", "filters")
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    REQUESTER_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    ASKED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    RADIUS_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    agreement: bytes
    requester: str
    purpose: str
    nonce: bytes
    asked_at_ms: int
    deadline_ms: int
    release: str
    modality: str
    code: bytes
    weights: bytes
    k: int
    radius: int
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    def __init__(self, agreement: _Optional[bytes] = ..., requester: _Optional[str] = ..., purpose: _Optional[str] = ..., nonce: _Optional[bytes] = ..., asked_at_ms: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., release: _Optional[str] = ..., modality: _Optional[str] = ..., code: _Optional[bytes] = ..., weights: _Optional[bytes] = ..., k: _Optional[int] = ..., radius: _Optional[int] = ..., filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class SignedQuery(_message.Message):
    __slots__ = ("query", "signature")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    query: bytes
    signature: bytes
    def __init__(self, query: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Hits(_message.Message):
    __slots__ = ("handles", "distances", "scores", "cut_to_bits")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    DISTANCES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    CUT_TO_BITS_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    distances: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[int]
    cut_to_bits: int
    def __init__(self, handles: _Optional[bytes] = ..., distances: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[int]] = ..., cut_to_bits: _Optional[int] = ...) -> None: ...

class Holds(_message.Message):
    __slots__ = ("release",)
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    release: str
    def __init__(self, release: _Optional[str] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("number", "hits", "refusal", "signature")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    number: int
    hits: Hits
    refusal: Refusal
    signature: bytes
    def __init__(self, number: _Optional[int] = ..., hits: _Optional[_Union[Hits, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class FromSite(_message.Message):
    __slots__ = ("holds", "answer")
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    holds: Holds
    answer: Answer
    def __init__(self, holds: _Optional[_Union[Holds, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class ToSite(_message.Message):
    __slots__ = ("number", "query")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    number: int
    query: SignedQuery
    def __init__(self, number: _Optional[int] = ..., query: _Optional[_Union[SignedQuery, _Mapping]] = ...) -> None: ...

class SiteResult(_message.Message):
    __slots__ = ("site", "outcome", "reason", "hits", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    outcome: str
    reason: str
    hits: Hits
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., hits: _Optional[_Union[Hits, _Mapping]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Gathered(_message.Message):
    __slots__ = ("sites",)
    SITES_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[SiteResult]
    def __init__(self, sites: _Optional[_Iterable[_Union[SiteResult, _Mapping]]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("refusal", "gathered")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    GATHERED_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    gathered: Gathered
    def __init__(self, refusal: _Optional[_Union[Refusal, _Mapping]] = ..., gathered: _Optional[_Union[Gathered, _Mapping]] = ...) -> None: ...
