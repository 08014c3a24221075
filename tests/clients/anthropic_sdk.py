"""The official Anthropic SDK, streamed and not."""

import anthropic

from scenarios import Said, drive


def see(base_url, key, scenario):
    said = Said()
    headers = {"x-provider": scenario["provider"]}
    with anthropic.Anthropic(
        base_url=base_url, api_key=key, default_headers=headers, max_retries=0
    ) as client:
        answer = client.messages.create(
            model="still-1",
            max_tokens=256,
            system="You are a baker.",
            messages=[{"role": "user", "content": "How do I keep a sourdough starter alive?"}],
            stream=scenario["stream"],
        )
        if not scenario["stream"]:
            for block in answer.content:
                start(block, said)
            return said.result()
        for event in answer:
            said.events += 1
            if event.type == "content_block_start":
                start(event.content_block, said)
            elif event.type == "content_block_delta" and event.delta.type == "text_delta":
                said.text.append(event.delta.text)
            elif event.type == "content_block_delta" and event.delta.type == "thinking_delta":
                said.reasoning.append(event.delta.thinking)
    return said.result()


def start(block, said):
    if block.type == "text":
        said.text.append(block.text)
    elif block.type == "thinking":
        said.reasoning.append(block.thinking)
    elif block.type in ("tool_use", "server_tool_use"):
        said.tools.append(block.name)


drive(see)
