// Sends and reads CloudEvents with the JavaScript SDK.  One request a line on standard input, one answer a line.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";

const { CloudEvent, HTTP } = createRequire(process.argv[2] + "/")("cloudevents");

async function send({ url, key, mode, events }) {
  const made = events.map((event) => new CloudEvent(event));
  let message;
  if (mode === "batch") {
    const headers = { "content-type": "application/cloudevents-batch+json" };
    message = { headers, body: JSON.stringify(made) };
  } else {
    message = HTTP[mode](made[0]);
  }
  const headers = { ...message.headers, "x-api-key": key };
  const response = await fetch(url, { method: "POST", headers, body: message.body });
  return { status: response.status, body: await response.json() };
}

function read({ headers, body }) {
  return HTTP.toEvent({ headers, body }).toJSON();
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  let answer;
  try {
    answer = request.url ? await send(request) : read(request);
  } catch (error) {
    answer = { error: String(error.stack) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
