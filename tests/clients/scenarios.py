"""What every Python driver shares: scenarios in, one JSON line out for each.

A driver is started with the base URL and the key; it reads scenarios as JSON lines from standard
input. A scenario has a `name`, a `kind` (the provider format), `stream` (whether to ask for a
stream), and `provider`: the directive for the fake provider, sent as the header `x-provider`.
"""

import json
import sys
import time
import traceback


def drive(see):
    """Calls `see(base_url, key, scenario)` for each scenario and prints what it returns."""
    base_url, key = sys.argv[1:3]
    for line in sys.stdin:
        scenario = json.loads(line)
        started = time.time()
        try:
            seen = see(base_url, key, scenario)
        except Exception as error:  # What a client raises is what its user sees: it is the result.
            traceback.print_exc()
            seen = {"error": type(error).__name__, "message": str(error)}
            status = getattr(error, "status_code", None) or getattr(error, "code", None)
            if isinstance(status, int):
                seen["status"] = status
        seen.update(name=scenario["name"], started=started, ended=time.time())
        print(json.dumps(seen), flush=True)


class Said:
    """Text, reasoning and tool names, gathered in order; the first choice only."""

    def __init__(self):
        self.text, self.reasoning, self.tools, self.events = [], [], [], 0

    def chat_message(self, message):
        """A chat message or a delta of one, of OpenAI and its compatibles."""
        if isinstance(message.content, str):
            self.text.append(message.content)
        for part in message.content if isinstance(message.content, list) else []:
            if part.type == "thinking":
                self.reasoning += [thought.text for thought in part.thinking]
            else:
                self.text.append(part.text)
        for field in ("reasoning_content", "reasoning"):
            thought = getattr(message, field, None)
            if isinstance(thought, str):
                self.reasoning.append(thought)
        for call in getattr(message, "tool_calls", None) or []:
            if call.function and isinstance(call.function.name, str) and call.function.name:
                self.tools.append(call.function.name)

    def result(self):
        return {
            "text": "".join(self.text),
            "reasoning": "".join(self.reasoning),
            "tools": self.tools,
            "events": self.events,
        }
