// Everything that goes over the network: this server only.
const KEY = "pagoda-key";

export function key(value) {
  if (value !== undefined) sessionStorage.setItem(KEY, value);
  return sessionStorage.getItem(KEY) || "";
}

function headers() {
  return key() ? { Authorization: `Bearer ${key()}` } : {};
}

export async function getJSON(path) {
  const answer = await fetch(path, { headers: headers() });
  if (!answer.ok) throw await failure(answer);
  return answer.json();
}

async function failure(answer) {
  const body = await answer.json().catch(() => ({}));
  const error = new Error(body.error?.message || `the server answers ${answer.status}`);
  error.status = answer.status;
  return error;
}

// One streamed answer: calls onDelta({content, reasoning}) as it grows, returns {finish, usage, metrics}.
export async function streamChat(body, signal, onDelta) {
  const answer = await fetch("v1/chat/completions", {
    method: "POST", signal, headers: { ...headers(), "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  if (!answer.ok) throw await failure(answer);
  const end = { finish: null, usage: null, metrics: null };
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) Object.assign(end, { usage: chunk.usage, metrics: chunk.metrics });
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    end.finish = choice.finish_reason || end.finish;
    const { content = "", reasoning_content: reasoning = "" } = choice.delta;
    if (content || reasoning) onDelta({ content, reasoning });
  }
  return end;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    let at;
    while ((at = text.indexOf("\n\n")) >= 0) {
      const line = text.slice(0, at);
      text = text.slice(at + 2);
      if (line.startsWith("data: ")) yield line.slice(6);
    }
  }
}
