"""The official Google Gen AI SDK, streamed and not."""

from google import genai
from google.genai import types

from scenarios import Said, drive


def see(base_url, key, scenario):
    said = Said()
    options = types.HttpOptions(
        base_url=base_url,
        headers={"x-provider": scenario["provider"]},
        retry_options=types.HttpRetryOptions(attempts=1),
    )
    client = genai.Client(api_key=key, http_options=options)
    question = {"model": "still-1", "contents": "How do I keep a sourdough starter alive?"}
    if scenario["stream"]:
        answers = client.models.generate_content_stream(**question)
    else:
        answers = [client.models.generate_content(**question)]
    for answer in answers:
        said.events += 1
        content = answer.candidates[0].content if answer.candidates else None
        for part in (content and content.parts) or []:
            if part.text:
                (said.reasoning if part.thought else said.text).append(part.text)
            if part.function_call:
                said.tools.append(part.function_call.name)
    client.close()
    return said.result()


drive(see)
