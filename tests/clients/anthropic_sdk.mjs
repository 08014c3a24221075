// The official Anthropic SDK for Node, streamed and not.

import { drive, load, Said } from "./scenarios.mjs";

const { default: Anthropic } = await load("@anthropic-ai/sdk");

await drive(async (baseURL, apiKey, scenario) => {
  const defaultHeaders = { "x-provider": scenario.provider };
  const client = new Anthropic({ baseURL, apiKey, defaultHeaders, maxRetries: 0 });
  const said = new Said();
  const answer = await client.messages.create({
    model: "still-1",
    max_tokens: 256,
    system: "You are a baker.",
    messages: [{ role: "user", content: "How do I keep a sourdough starter alive?" }],
    stream: scenario.stream,
  });
  if (!scenario.stream) {
    for (const block of answer.content) start(block, said);
    return said;
  }
  for await (const event of answer) {
    said.events += 1;
    if (event.type === "content_block_start") start(event.content_block, said);
    if (event.type !== "content_block_delta") continue;
    if (event.delta.type === "text_delta") said.text += event.delta.text;
    if (event.delta.type === "thinking_delta") said.reasoning += event.delta.thinking;
  }
  return said;
});

function start(block, said) {
  if (block.type === "text") said.text += block.text;
  if (block.type === "thinking") said.reasoning += block.thinking;
  if (block.type === "tool_use" || block.type === "server_tool_use") said.tools.push(block.name);
}
