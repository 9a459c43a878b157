// The events of one run, as they happen.
import { spoken } from "./page.js";

const ENDS = ["succeeded", "failed", "cancelled"];

/**
 * Call `on.progress(fraction, text)`, `on.preview(picture)`, `on.image(index)` and, once, `on.end(kind, error)`. Gives back
 * a function that stops.
 */
export function follow(runId, on) {
  const source = new EventSource(`/dashboard/runs/${runId}/events`);
  let previewsSeen = 0;
  const hear = (kind, act) => source.addEventListener(kind, (event) => act(JSON.parse(event.data)));
  hear("queued", () => on.progress(0, "Waiting for its turn"));
  hear("started", () => on.progress(0, "Starting"));
  hear("requeued", () => on.progress(0, "Waiting again: the worker was lost"));
  hear("progress", (event) => {
    const eta = event.eta_seconds === null ? "" : `, about ${spoken(event.eta_seconds)} left`;
    const fraction = event.steps_total ? event.steps_done / event.steps_total : 0;
    on.progress(fraction, `Step ${event.steps_done} of ${event.steps_total}${eta}`);
  });
  hear("preview", async () => {
    previewsSeen += 1;
    const picture = new Image();
    picture.alt = "How far the picture has come";
    picture.src = `/dashboard/runs/${runId}/preview?${previewsSeen}`;
    // Shown once it is whole; the run may have ended before it came.
    await picture.decode().then(() => on.preview(picture)).catch(() => {});
  });
  hear("image", (event) => on.image(event.image_index));
  for (const kind of ENDS) {
    hear(kind, (event) => {
      source.close();
      on.end(kind, event.error);
    });
  }
  return () => source.close();
}
