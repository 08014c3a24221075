// Node's own fetch. A scenario names `method`, `path`, `headers` (a list of pairs) and `body`.

import { createHash } from "node:crypto";

import { drive } from "./scenarios.mjs";

await drive(async (baseURL, key, scenario) => {
  const headers = [["authorization", "Bearer " + key], ...(scenario.headers ?? [])];
  const body = scenario.body || undefined;
  const { method } = scenario;
  const response = await fetch(baseURL + scenario.path, { method, headers, body });
  const data = Buffer.from(await response.arrayBuffer());
  return {
    status: response.status,
    length: data.length,
    sha256: createHash("sha256").update(data).digest("hex"),
    body: data.subarray(0, 4096).toString("utf8"),
  };
});
