// A picture as code: the request that draws exactly this one again.

import { BASE_URL } from "./api.js";

/** The body of the request for one picture of a job. */
function bodyOf({ model, prompt, size, quality, output_format, seed }) {
  return { model, prompt, size, quality, output_format, seed, response_format: "b64_json" };
}

function extension(picture) {
  return picture.output_format === "jpeg" ? "jpg" : picture.output_format;
}

/** The file name to save a picture under. */
export function fileName(picture) {
  const model = picture.model.split("/").pop();
  return `${model}-${picture.seed}.${extension(picture)}`;
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

export function curl(picture) {
  return [
    `curl -sS --fail-with-body ${BASE_URL}/images/generations \\`,
    `  -H "Authorization: Bearer $FLUX_SERVE_API_KEY" \\`,
    `  -H "Content-Type: application/json" \\`,
    `  -d ${shellQuoted(JSON.stringify(bodyOf(picture)))} \\`,
    `  | jq -r '.data[0].b64_json' | base64 -d > ${fileName(picture)}`,
  ].join("\n");
}

export function python(picture) {
  // JSON's strings are Python's, too.
  const { seed, ...named } = bodyOf(picture);
  return [
    "import base64",
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(BASE_URL)}, api_key=os.environ["FLUX_SERVE_API_KEY"])`,
    "reply = client.images.generate(",
    ...Object.entries(named).map(([name, value]) => `    ${name}=${JSON.stringify(value)},`),
    `    extra_body={"seed": ${seed}},`,
    ")",
    `with open(${JSON.stringify(fileName(picture))}, "wb") as file:`,
    "    file.write(base64.b64decode(reply.data[0].b64_json))",
  ].join("\n");
}
