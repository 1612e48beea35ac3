// What the page asks its server for; nothing else is ever fetched.

const PATIENCE = 6; // times that a busy server is asked again

/** Send a form and give the answer; raises an Error with the server's own sentence. */
export async function send(kind, fields, signal) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) form.append(name, value, value.name ?? `${name}.png`);
    else if (value !== null && value !== undefined) form.append(name, value);
  }
  for (let turn = 1; ; turn++) {
    let answer;
    try {
      answer = await fetch(`api/${kind}`, { method: "POST", body: form, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached; is it still running?");
    }
    if (answer.ok) return { blob: await answer.blob(), doubt: Number(answer.headers.get("x-subject-doubt") ?? 0) };
    if (answer.status === 503 && turn < PATIENCE) {
      await new Promise((done) => setTimeout(done, 1000 * Number(answer.headers.get("retry-after") ?? 2)));
      signal?.throwIfAborted();
      continue;
    }
    const told = await answer.json().then((content) => content.error, () => `the server says ${answer.status}`);
    throw Object.assign(new Error(sentence(told)), { status: answer.status });
  }
}

/** The stages that there are to choose from, and the server's limits. */
export async function stages() {
  const answer = await fetch("api/stages");
  const told = await answer.json();
  if (!answer.ok) throw new Error(sentence(told.error));
  return told;
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
