// Every page: copying, menus that close, times on the reader's own clock.

/** Copy `text`; say so on the button for a moment. */
export async function copy(text, button) {
  const label = button.querySelector("span") ?? button;
  const before = label.textContent;
  try {
    await navigator.clipboard.writeText(text);
    label.textContent = "Copied";
  } catch {
    label.textContent = copyTheOldWay(text) ? "Copied" : "Press Ctrl+C";
  }
  setTimeout(() => { label.textContent = before; }, 1600);
}

// Over plain http browsers give pages no clipboard of the new kind.
function copyTheOldWay(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "sr";
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  return isDone;
}

/** Seconds as people say them. */
export function spoken(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** Ask our own server for JSON. Throws an Error with its sentence, `status` and `problem` when it refuses. */
export async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { Accept: "application/json" }, credentials: "same-origin" });
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401) window.location.reload();
  if (!answer.ok) {
    const sentence = body.message ?? "The server does not answer.";
    throw Object.assign(new Error(sentence), { status: answer.status, problem: body });
  }
  return body;
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", () => copy(document.getElementById(button.dataset.copy).textContent, button));
}

for (const time of document.querySelectorAll("time[datetime]")) {
  time.title = new Date(time.dateTime).toLocaleString();
}

const menus = document.querySelectorAll("details.confirm");
document.addEventListener("click", (event) => {
  for (const menu of menus) if (menu.open && !menu.contains(event.target)) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of menus) {
    if (menu.open) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  }
});
