"""PLACEHOLDER by the lead so that the actors can be integrated; its author overwrites it.

Needed by pieray/host: Lineage(), .forget(frame_id), .record_forward(prepared, kv_len, tokens, positions, mask: bytes),
.record_copy(prepared).  `prepared` is pieray.pages.handles.Prepared.
"""


class Lineage:
    def forget(self, frame: int) -> None: ...

    def record_forward(self, prepared, kv_len, tokens, positions, mask) -> None: ...

    def record_copy(self, prepared) -> None: ...
