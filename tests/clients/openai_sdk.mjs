// The official OpenAI SDK for Node: chat, Responses and legacy completions, streamed and not.

import { drive, load, Said } from "./scenarios.mjs";

const { default: OpenAI } = await load("openai");
const PROMPT = "How do I keep a sourdough starter alive?";

await drive(async (baseURL, apiKey, scenario) => {
  const defaultHeaders = { "x-provider": scenario.provider };
  const client = new OpenAI({ baseURL: baseURL + "/v1", apiKey, defaultHeaders, maxRetries: 0 });
  const said = new Said();
  await { "openai-chat": chat, "openai-responses": responses, "openai-completions": completions }[
    scenario.kind
  ](client, scenario.stream, said);
  return said;
});

async function chat(client, stream, said) {
  const messages = [{ role: "user", content: PROMPT }];
  const answer = await client.chat.completions.create({ model: "still-1", messages, stream });
  for await (const event of stream ? answer : [answer]) {
    said.events += 1;
    for (const choice of event.choices ?? []) {
      if (choice.index === 0) said.chatMessage(stream ? choice.delta : choice.message);
    }
  }
}

async function responses(client, stream, said) {
  const answer = await client.responses.create({ model: "still-1", input: PROMPT, stream });
  if (!stream) {
    said.text += answer.output_text;
    return;
  }
  for await (const event of answer) {
    said.events += 1;
    if (event.type === "response.output_text.delta") said.text += event.delta;
    if (event.type === "response.reasoning_summary_text.delta") said.reasoning += event.delta;
    if (event.type === "response.output_item.added" && event.item.type === "function_call") {
      said.tools.push(event.item.name);
    }
  }
}

async function completions(client, stream, said) {
  const answer = await client.completions.create({ model: "still-base-1", prompt: PROMPT, stream });
  for await (const event of stream ? answer : [answer]) {
    said.events += 1;
    for (const choice of event.choices) if (choice.index === 0) said.text += choice.text;
  }
}
