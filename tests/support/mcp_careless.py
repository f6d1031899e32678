"""An MCP server over stdio, written by hand, whose tools break what they promise: `python mcp_careless.py`."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

OUTPUT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
INPUT = {"type": "object", "properties": {}}
TOOLS = [{"name": name, "inputSchema": INPUT, "outputSchema": OUTPUT} for name in ("wrong", "plain", "right")]
TOOLS += [{"name": name, "inputSchema": INPUT} for name in ("noise", "pid", "slow")]
LOCK = threading.Lock()


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": said}], "isError": False, **more}


def called(name: str) -> dict[str, Any]:
    if name == "wrong":
        return text("x", structuredContent={"n": "x"})
    if name == "plain":
        return text("only text")
    if name == "right":
        return text("3", structuredContent={"n": 3})
    if name == "noise":
        with LOCK:
            print("starting up ...\n{not json}\n", flush=True)
        return text("quiet")
    if name == "slow":
        time.sleep(2.0)
        return text("done")
    return text(str(os.getpid()))


def answer(request: dict[str, Any]) -> None:
    method, said = request.get("method"), {"jsonrpc": "2.0", "id": request.get("id")}
    if method == "initialize":
        version = request["params"]["protocolVersion"]
        info = {"name": "careless", "version": "1"}
        said["result"] = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
    elif method == "tools/list":
        said["result"] = {"tools": TOOLS}
    elif method == "tools/call":
        said["result"] = called(request["params"]["name"])
    elif method == "ping":
        said["result"] = {}
    else:
        said["error"] = {"code": -32601, "message": f"there is no method {method}"}
    with LOCK:
        print(json.dumps(said), flush=True)


for line in sys.stdin:
    given = json.loads(line)
    if "id" in given:
        threading.Thread(target=answer, args=(given,), daemon=True).start()
