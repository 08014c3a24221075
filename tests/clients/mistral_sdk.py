"""The official Mistral SDK, streamed and not."""

from mistralai.client import Mistral

from scenarios import Said, drive


def see(base_url, key, scenario):
    said = Said()
    with Mistral(api_key=key, server_url=base_url) as client:
        question = {
            "model": "still-medium",
            "messages": [{"role": "user", "content": "How do I keep a starter alive?"}],
            "http_headers": {"x-provider": scenario["provider"]},
        }
        if not scenario["stream"]:
            said.chat_message(client.chat.complete(**question).choices[0].message)
            return said.result()
        with client.chat.stream(**question) as stream:
            for event in stream:
                said.events += 1
                for choice in event.data.choices:
                    said.chat_message(choice.delta)
    return said.result()


drive(see)
