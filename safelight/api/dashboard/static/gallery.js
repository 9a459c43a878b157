// The gallery: a picture at full size with its parameters, without leaving the page.
import { ask } from "./page.js";

const dialog = document.getElementById("large");
const element = (id) => document.getElementById(id);

document.getElementById("pictures")?.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-run]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  open(link.dataset.run, link.dataset.index);
});
element("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});

async function open(runId, index) {
  const path = `/dashboard/runs/${runId}/images/${index}`;
  const run = await ask(`/dashboard/runs/${runId}`);
  const image = run.images.find((each) => String(each.index) === index);
  if (!image) return;
  element("large-image").src = path;
  element("large-image").alt = run.params.prompt;
  element("large-prompt").textContent = run.params.prompt;
  element("large-run").href = `/dashboard/runs/${runId}`;
  element("large-again").href = `/dashboard/playground?run=${runId}&image=${index}`;
  element("large-download").href = `${path}?download`;
  const facts = [
    ["Seed", image.seed],
    ["Size", `${run.params.width} × ${run.params.height}`],
    ["Steps", run.params.num_inference_steps],
    ["Guidance", run.params.guidance_scale],
    ["Sampler", run.params.sampler],
    ["Deployment", `${run.deployment} v${run.version}`],
    ["Made", new Date(run.created_at).toLocaleString()],
  ];
  element("large-facts").replaceChildren(...facts.flatMap(([name, value]) => [term("dt", name), term("dd", value)]));
  dialog.showModal();
}

function term(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}
