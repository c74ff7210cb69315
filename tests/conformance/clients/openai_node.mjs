// OpenAI's client for Node.
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.cwd()}/`);
const OpenAI = require("openai");
const client = new OpenAI(), model = process.env.MODEL;
const chat = { model, messages: [{ role: "user", content: "Walk?" }], max_tokens: 12, temperature: 0 };

const whole = await client.chat.completions.create(chat);
assert.equal(whole.usage.completion_tokens, 12);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...chat, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, whole.choices[0].message.content);
const parameters = { type: "object", properties: { hour: { enum: [1, 2] } }, required: ["hour"], additionalProperties: false };
const tools = [{ type: "function", function: { name: "clock", parameters } }];
const called = await client.chat.completions.create({ ...chat, max_tokens: 200, parallel_tool_calls: false, tools, tool_choice: "required" });
assert.equal(called.choices[0].message.tool_calls[0].function.name, "clock");
const vectors = await client.embeddings.create({ model: process.env.ENCODER, input: ["a", "b"] });
assert.equal(vectors.data.length, 2);
assert.ok((await client.models.list()).data.some((one) => one.id === model));
await assert.rejects(client.chat.completions.create({ ...chat, model: "none" }), { status: 404, code: "model_not_found" });
console.log(JSON.parse(readFileSync("node_modules/openai/package.json")).version);
