// What every Node driver shares: scenarios in, one JSON line out for each (see scenarios.py).

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

// Imports a package from the folder that the harness names.
export async function load(name) {
  const folder = process.env.STILLGATE_NODE_MODULES;
  const from = createRequire(pathToFileURL(folder + "/../driver.js"));
  return import(pathToFileURL(from.resolve(name)));
}

// Calls `see(baseURL, key, scenario)` for each scenario and prints what it returns.
export async function drive(see) {
  const [baseURL, key] = process.argv.slice(2);
  for await (const line of createInterface({ input: process.stdin })) {
    const scenario = JSON.parse(line);
    const started = Date.now() / 1000;
    let seen;
    try {
      seen = await see(baseURL, key, scenario);
    } catch (error) {
      // What a client throws is what its user sees: it is the result.
      console.error(error);
      seen = { error: error.constructor.name, message: String(error.message) };
      if (error.status) seen.status = error.status;
    }
    const times = { started, ended: Date.now() / 1000 };
    console.log(JSON.stringify({ ...seen, name: scenario.name, ...times }));
  }
}

// Text, reasoning and tool names, gathered in order; the first choice only.
export class Said {
  text = "";
  reasoning = "";
  tools = [];
  events = 0;

  chatMessage(message) {
    this.text += message.content ?? "";
    this.reasoning += (message.reasoning_content ?? "") + (message.reasoning ?? "");
    for (const call of message.tool_calls ?? []) {
      if (call.function?.name) this.tools.push(call.function.name);
    }
  }
}
