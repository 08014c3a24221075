"""LiteLLM, which speaks to many providers through one interface, streamed and not."""

import gc
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # The price list is not fetched.

import litellm  # noqa: E402

from scenarios import Said, drive  # noqa: E402

litellm.telemetry = False
litellm.suppress_debug_info = True

MODELS = {
    "openai-chat": ("openai/still-1", "/v1"),
    "anthropic": ("anthropic/still-1", ""),
    "gemini": ("gemini/still-1", "/v1beta"),
    "mistral": ("mistral/still-medium", "/v1"),
    "deepseek": ("deepseek/still-reasoner", "/v1"),
}


def see(base_url, key, scenario):
    said = Said()
    model, path = MODELS[scenario["kind"]]
    answer = litellm.completion(
        model=model,
        api_base=base_url + path,
        api_key=key,
        messages=[{"role": "user", "content": "How do I keep a sourdough starter alive?"}],
        stream=scenario["stream"],
        extra_headers={"x-provider": scenario["provider"]},
        num_retries=0,
        max_retries=0,
    )
    for event in answer if scenario["stream"] else [answer]:
        said.events += 1
        for choice in event.choices:
            if choice.index == 0:
                said.chat_message(choice.delta if scenario["stream"] else choice.message)
    # LiteLLM leaves a stream open behind its last event. Collected in the middle of the next request,
    # such a stream waits for ever for its connection pool's lock, which that request holds.
    del answer
    gc.collect()
    return said.result()


drive(see)
