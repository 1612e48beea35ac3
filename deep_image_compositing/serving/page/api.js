// The page's requests to its server; nothing else is ever fetched.

const ATTEMPTS = 6; // when the server is busy

/** Send a form and return the answer; throws an Error with the server's message. */
export async function send(kind, fields, signal) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) form.append(name, value, value.name ?? `${name}.png`);
    else if (value !== null && value !== undefined) form.append(name, value);
  }
  for (let attempt = 1; ; attempt++) {
    let answer;
    try {
      answer = await fetch(`api/${kind}`, { method: "POST", body: form, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached; is it still running?");
    }
    if (answer.ok) return { blob: await answer.blob(), doubt: Number(answer.headers.get("x-subject-doubt") ?? 0) };
    if (answer.status === 503 && attempt < ATTEMPTS) {
      await new Promise((done) => setTimeout(done, 1000 * Number(answer.headers.get("retry-after") ?? 2)));
      signal?.throwIfAborted();
      continue;
    }
    const text = await answer.json().then((content) => content.error, () => `the server answered with status ${answer.status}`);
    throw Object.assign(new Error(sentence(text)), { status: answer.status });
  }
}

/** The available stages and the server's limits. */
export async function stages() {
  const answer = await fetch("api/stages");
  const content = await answer.json();
  if (!answer.ok) throw new Error(sentence(content.error));
  return content;
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
