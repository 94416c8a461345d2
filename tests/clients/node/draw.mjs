// Draws one picture by URL, two as base64 and one as a stream, then provokes errors; prints what it saw as JSON.
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const small = { model: "black-forest-labs/FLUX.1-schnell", prompt: "a red circle", size: "256x256" };

const byUrl = await client.images.generate(small);
const download = await fetch(byUrl.data[0].url);
const inline = await client.images.generate({ ...small, n: 2, response_format: "b64_json", output_format: "webp" });
const { data, request_id } = await client.images.generate(small).withResponse();

async function streamed(more) {
  const events = [];
  for await (const event of await client.images.generate({ ...small, stream: true, ...more })) events.push(event);
  return events;
}
const events = await streamed({ partial_images: 2 });

async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return { class: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}

console.log(
  JSON.stringify({
    contentType: download.headers.get("content-type"),
    downloadedBytes: (await download.arrayBuffer()).byteLength,
    inlineMagic: inline.data.map((image) => Buffer.from(image.b64_json, "base64").toString("latin1", 8, 12)),
    outputTokens: inline.usage.output_tokens,
    eventTypes: events.map((event) => event.type.split(".")[1]),
    eventMagic: events.map((event) => Buffer.from(event.b64_json, "base64").toString("latin1", 1, 4)),
    eventUnits: events.at(-1).usage.output_tokens,
    requestId: request_id ?? data._request_id,
    models: (await client.models.list()).data.map((model) => model.id),
    badSize: await failure(() => client.images.generate({ ...small, size: "100x100" })),
    badStream: await failure(() => streamed({ size: "100x100" })),
    badModel: await failure(() => client.models.retrieve("no/such-model")),
    badKey: await failure(() => new OpenAI({ baseURL, apiKey: "sk-wrong" }).models.list()),
  }),
);
