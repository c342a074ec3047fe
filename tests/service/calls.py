"""Messages of `envoy.service.ratelimit.v3` as the tests write and read them: by a description of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ratelimiter.service.rls import PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc

F = descriptor_pb2.FieldDescriptorProto


def _made() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="tests/rls.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, Any, bool]) -> None:
        added = file.message_type.add(name=name)
        for field, number, kind, many in fields:
            label = F.LABEL_REPEATED if many else F.LABEL_OPTIONAL
            if isinstance(kind, str):
                added.field.add(name=field, number=number, type=F.TYPE_MESSAGE, type_name=f".t.{kind}", label=label)
            else:
                added.field.add(name=field, number=number, type=kind, label=label)

    text, whole, yes = F.TYPE_STRING, F.TYPE_UINT32, F.TYPE_BOOL
    message("Entry", ("key", 1, text, False), ("value", 2, text, False))
    message("Override", ("requests_per_unit", 1, whole, False), ("unit", 2, whole, False))
    message("UInt64Value", ("value", 1, F.TYPE_UINT64, False))
    message(
        "Descriptor",
        ("entries", 1, "Entry", True),
        ("limit", 2, "Override", False),
        ("hits_addend", 3, "UInt64Value", False),
        ("is_negative_hits", 4, yes, False),
    )
    message(
        "Request", ("domain", 1, text, False), ("descriptors", 2, "Descriptor", True), ("hits_addend", 3, whole, False)
    )
    message("Limit", ("requests_per_unit", 1, whole, False), ("unit", 2, whole, False), ("name", 3, text, False))
    message("Duration", ("seconds", 1, F.TYPE_INT64, False), ("nanos", 2, F.TYPE_INT32, False))
    message(
        "Status",
        ("code", 1, whole, False),
        ("current_limit", 2, "Limit", False),
        ("limit_remaining", 3, whole, False),
        ("duration_until_reset", 4, "Duration", False),
    )
    message("Header", ("key", 1, text, False), ("value", 2, text, False))
    message(
        "Response",
        ("overall_code", 1, whole, False),
        ("statuses", 2, "Status", True),
        ("response_headers_to_add", 3, "Header", True),
        ("raw_body", 5, F.TYPE_BYTES, False),
        ("dynamic_metadata", 6, F.TYPE_BYTES, False),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        each.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"t.{each.name}"))
        for each in file.message_type
    }


MESSAGES = _made()
OK, OVER = 1, 2


def descriptor(*entries: tuple[str, str], **others: Any) -> Any:
    """A descriptor; *others* are `limit` (per unit, unit), `hits` and `negative`."""
    made = MESSAGES["Descriptor"](entries=[{"key": key, "value": value} for key, value in entries])
    if "limit" in others:
        made.limit.requests_per_unit, made.limit.unit = others["limit"]
    if "hits" in others:
        made.hits_addend.SetInParent()
        made.hits_addend.value = others["hits"]
    made.is_negative_hits = others.get("negative", False)
    return made


def request(*descriptors: Any, domain: str = "edge", hits: int = 0) -> bytes:
    """A whole request."""
    wanted = MESSAGES["Request"](domain=domain, descriptors=descriptors, hits_addend=hits)
    return bytes(wanted.SerializeToString())


def should(channel: grpc.Channel, *descriptors: Any, timeout: float = 5, **others: Any) -> Any:
    """The answer to a call."""
    answer = channel.unary_unary(PATH)(request(*descriptors, **others), timeout=timeout)
    return MESSAGES["Response"].FromString(answer)


def codes(answer: Any) -> Sequence[int]:
    """The overall code, and those of the descriptors."""
    return [answer.overall_code, *(status.code for status in answer.statuses)]
