from hypothesis import given
from hypothesis import strategies as st

from ctseg.pacs.multipart import parts_of


@given(
    parts=st.lists(st.binary(max_size=40) | st.sampled_from([b"\r\n", b"\r\n--", b"--b", b"\r\n--a", b"\r\n\r\n"])),
    sizes=st.lists(st.integers(1, 30), min_size=1),
    header=st.sampled_from([b"", b"\r\nContent-Type: application/dicom"]),
)
def test_parts_come_back_however_the_bytes_are_cut(parts, sizes, header):
    whole = b"".join(b"--b0b\r\n".replace(b"\r\n", b"") + header + b"\r\n\r\n" + part + b"\r\n" for part in parts)
    whole += b"--b0b--\r\n"
    chunks, at = [], 0
    while at < len(whole):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(whole[at : at + size])
        at += size
    assert [b"".join(part) for part in parts_of(chunks, b"b0b")] == parts
