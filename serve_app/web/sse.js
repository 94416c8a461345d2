// Server-sent events out of a fetch: EventSource can neither POST nor send a key.

/** The `data:` of each event, parsed; comments and field names that nobody needs are skipped. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop();
      for (const block of blocks) {
        const data = block
          .split("\n")
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart())
          .join("\n");
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    // Also when the caller stops early: the server must learn that nobody reads any more.
    await reader.cancel().catch(() => {});
  }
}
