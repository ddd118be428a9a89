// What OpenAI's client for Node makes of our server: node openai_client.mjs PACKAGE URL; JSON on standard output.
import { pathToFileURL } from "node:url";

const [path, url] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(path).href);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "secret", maxRetries: 0 });

const asked = { model: "toy", messages: [{ role: "user", content: "Rain?" }], temperature: 0, max_tokens: 100 };
const parameters = { type: "object", properties: { city: { type: "string" }, days: { type: "integer" } } };
const tools = [{ type: "function", function: { name: "weather", parameters } }];
const said = {};

said.models = [];
for await (const model of client.models.list()) said.models.push(model.id);

said.chat = await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 2 });

said.chunks = [];
const options = { include_usage: true };
const chunks = await client.chat.completions.create({ ...asked, stream: true, stream_options: options });
for await (const chunk of chunks) said.chunks.push(chunk);

// the client's own way to put a stream together, with its events
const stream = client.chat.completions.stream(asked);
said.pieces = [];
stream.on("content", (piece) => said.pieces.push(piece));
said.streamed = await stream.finalChatCompletion();

said.tools = await client.chat.completions.create({ ...asked, tools });
said.toolsStreamed = await client.chat.completions.stream({ ...asked, tools }).finalChatCompletion();

said.completion = await client.completions.create({ model: "toy", prompt: "a", max_tokens: 4, logprobs: 1, echo: true });
said.embedding = (await client.embeddings.create({ model: "toy", input: "some text" })).data[0].embedding;

// a reader who has had enough closes the connection
said.broken = 0;
for await (const _ of await client.completions.create({ model: "toy", prompt: "a", max_tokens: 50, stream: true })) {
  if (++said.broken === 2) break;
}

said.errors = {};
const failing = {
  model: () => client.chat.completions.create({ ...asked, model: "other" }),
  field: () => client.chat.completions.create({ ...asked, top_logprobs: 2 }),
  key: () => new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong", maxRetries: 0 }).models.list(),
};
for (const [what, call] of Object.entries(failing)) {
  try {
    await call();
  } catch (error) {
    said.errors[what] = [error.constructor.name, error.status, error.code, error.param];
  }
}
console.log(JSON.stringify(said));
