"""An MCP server with one tool, over stdio; runs outside of the engine, with the mcp library."""

import ast
import operator

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
server = MCPServer("calculator", log_level="ERROR")


@server.tool()
def calculate(expression: str) -> str:
    """Calculate with whole numbers and + - *."""
    try:
        return str(value_of(ast.parse(expression[:200], mode="eval").body))
    except (SyntaxError, ValueError) as error:
        raise ToolError(f"cannot calculate {expression[:200]!r}: {error}") from None


def value_of(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](value_of(left), value_of(right))
    raise ValueError("not an expression of whole numbers and + - *")


if __name__ == "__main__":
    server.run("stdio")
