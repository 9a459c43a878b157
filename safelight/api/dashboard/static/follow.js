// The events of one run, as they happen.
import { ask, spoken } from "./page.js";

const ENDS = ["succeeded", "failed", "cancelled"];
const PAUSE_MS = 3000;

/**
 * Call `on.progress(fraction, text)`, `on.preview(picture)`, `on.image(index)` and, once, `on.end(kind, error)`. Gives back
 * a function that stops. After a stream was refused all events are told again.
 */
export function follow(runId, on) {
  const path = `/dashboard/runs/${runId}`;
  const row = { source: null, timer: 0, isOver: false };
  let previewsSeen = 0;

  function listen() {
    row.source = new EventSource(`${path}/events`);
    const hear = (kind, act) => row.source.addEventListener(kind, (event) => act(JSON.parse(event.data)));
    hear("queued", () => on.progress(0, "Waiting for its turn"));
    hear("started", () => on.progress(0, "Starting"));
    hear("requeued", () => on.progress(0, "Waiting again: the worker was lost"));
    hear("progress", progress);
    hear("preview", preview);
    hear("image", (event) => on.image(event.image_index));
    for (const kind of ENDS) hear(kind, (event) => end(kind, event.error));
    row.source.addEventListener("error", lookLater);
  }

  function progress(event) {
    const eta = event.eta_seconds === null ? "" : `, about ${spoken(event.eta_seconds)} left`;
    const fraction = event.steps_total ? event.steps_done / event.steps_total : 0;
    on.progress(fraction, `Step ${event.steps_done} of ${event.steps_total}${eta}`);
  }

  async function preview() {
    previewsSeen += 1;
    const picture = new Image();
    picture.alt = "How far the picture has come";
    picture.src = `${path}/preview?${previewsSeen}`;
    // Shown once it is whole; the run may have ended before it came.
    await picture.decode().then(() => on.preview(picture)).catch(() => {});
  }

  // A browser opens a stream anew that broke off, and gives one up for good that was refused.
  function lookLater() {
    if (row.source.readyState === EventSource.CLOSED && !row.isOver) row.timer = setTimeout(look, PAUSE_MS);
  }

  async function look() {
    const { status, error } = await ask(path).catch(afterRefusal);
    if (row.isOver) return;
    if (ENDS.includes(status)) end(status, error);
    else listen();
  }

  function end(kind, error) {
    stop();
    on.end(kind, error);
  }

  function stop() {
    row.isOver = true;
    clearTimeout(row.timer);
    row.source.close();
  }

  listen();
  return stop;
}

// How a run stands whose page was refused: over when it is not there any more, else nobody knows.
function afterRefusal(refusal) {
  // A proxy whose server is away may say 404 too, but without a code of ours.
  const isGone = refusal.status === 404 && refusal.problem.code;
  return isGone ? { status: "failed", error: { message: refusal.message } } : {};
}
