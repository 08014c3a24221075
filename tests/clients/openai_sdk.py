"""The official OpenAI SDK: chat, Responses and legacy completions, streamed and not."""

import openai

from scenarios import Said, drive

PROMPT = "How do I keep a sourdough starter alive?"


def see(base_url, key, scenario):
    said = Said()
    headers = {"x-provider": scenario["provider"]}
    with openai.OpenAI(
        base_url=base_url + "/v1", api_key=key, default_headers=headers, max_retries=0
    ) as client:
        {"openai-chat": chat, "openai-responses": responses, "openai-completions": completions}[
            scenario["kind"]
        ](client, scenario["stream"], said)
    return said.result()


def chat(client, stream, said):
    messages = [{"role": "user", "content": PROMPT}]
    answer = client.chat.completions.create(model="still-1", messages=messages, stream=stream)
    for event in answer if stream else [answer]:
        said.events += 1
        for choice in event.choices:
            if choice.index == 0:
                said.chat_message(choice.delta if stream else choice.message)


def responses(client, stream, said):
    answer = client.responses.create(model="still-1", input=PROMPT, stream=stream)
    if not stream:
        said.text.append(answer.output_text)
        return
    for event in answer:
        said.events += 1
        if event.type == "response.output_text.delta":
            said.text.append(event.delta)
        elif event.type == "response.reasoning_summary_text.delta":
            said.reasoning.append(event.delta)
        elif event.type == "response.output_item.added" and event.item.type == "function_call":
            said.tools.append(event.item.name)


def completions(client, stream, said):
    answer = client.completions.create(model="still-base-1", prompt=PROMPT, stream=stream)
    for event in answer if stream else [answer]:
        said.events += 1
        said.text += [choice.text for choice in event.choices if choice.index == 0]


drive(see)
