// The playground: asks for a run, follows it, shows what comes. Without this the form leads to the run's own page.
import { ask, copy } from "./page.js";
import { follow } from "./follow.js";

const form = document.getElementById("ask");

if (form) {
  const element = (id) => document.getElementById(id);
  const button = element("draw");
  const row = { stop: () => {}, runId: null, entry: null };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  document.addEventListener("keydown", (event) => {
    const isAsked = event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat;
    if (isAsked && !button.disabled && !event.target.closest("a")) form.requestSubmit();
  });
  element("cancel").addEventListener("click", cancel);
  const chooser = form.querySelector("select[name=deployment]");
  chooser?.addEventListener("change", () => {
    // Another deployment has other defaults and limits, which the server knows.
    window.location.search = new URLSearchParams({ deployment: chooser.value });
  });

  async function draw() {
    button.disabled = true;
    element("trouble").hidden = true;
    try {
      const { run_id: runId } = await ask(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
      begin(runId);
    } catch (error) {
      trouble(error);
      button.disabled = false;
    }
  }

  function begin(runId) {
    row.stop();
    row.runId = runId;
    row.entry = remember(runId);
    element("blank").hidden = true;
    element("results").replaceChildren(...blanks());
    element("progress").hidden = false;
    element("cancel").disabled = false;
    say(0, "Waiting for its turn");
    row.stop = follow(runId, {
      progress: say,
      preview: (picture) => runId === row.runId && element("results").querySelector(".waiting")?.replaceChildren(picture),
      image: () => showImages(runId),
      end: (kind, error) => end(runId, kind, error),
    });
  }

  function say(fraction, text) {
    element("bar").value = fraction;
    element("progress-text").textContent = text;
    if (fraction > 0) mark("running");
  }

  async function end(runId, kind, error) {
    button.disabled = false;
    element("progress").hidden = true;
    mark(kind);
    if (kind === "failed") trouble(new Error(error?.message ?? "The run failed."));
    // A run that is not there any more has no pictures to show, and none to come.
    const run = await showImages(runId).catch((refusal) => {
      if (kind !== "failed") trouble(refusal);
      element("results").replaceChildren();
    });
    if (kind === "cancelled" && !run?.images.length) element("blank").hidden = false;
    window.history.replaceState(null, "", "/dashboard/playground");
  }

  async function showImages(runId) {
    const run = await ask(`/dashboard/runs/${runId}`);
    if (runId !== row.runId) return run;
    const isOver = element("progress").hidden;
    const drawn = run.images.map((image) => result(run, image));
    element("results").replaceChildren(...drawn, ...(isOver ? [] : blanks().slice(drawn.length)));
    const thumb = row.entry.querySelector(".thumb");
    if (run.images.length && !thumb.firstChild) {
      const small = document.createElement("img");
      small.src = `/dashboard/runs/${runId}/thumbnails/${run.images[0].index}`;
      small.alt = "";
      thumb.append(small);
    }
    return run;
  }

  // What is still to come, in the shape it will have.
  function blanks() {
    const { width, height, num_images_per_prompt: count } = form.elements;
    return Array.from({ length: Math.min(Number(count.value) || 1, 16) }, () => {
      const blank = document.createElement("div");
      blank.className = "waiting";
      blank.style.aspectRatio = `${Number(width.value) || 1} / ${Number(height.value) || 1}`;
      return blank;
    });
  }

  function result(run, image) {
    const article = element("result").content.cloneNode(true);
    const path = `/dashboard/runs/${run.id}/images/${image.index}`;
    const picture = article.querySelector("img");
    picture.src = path;
    picture.alt = run.params.prompt;
    picture.width = run.params.width;
    picture.height = run.params.height;
    article.querySelector("a").href = path;
    article.querySelector("[data-seed]").textContent = image.seed;
    article.querySelector("[data-download]").href = `${path}?download`;
    article.querySelector("[data-again]").addEventListener("click", () => again(image.seed));
    const curl = article.querySelector("[data-curl]");
    curl.addEventListener("click", () => copy(run.curl[image.index], curl));
    return article;
  }

  function again(seed) {
    form.elements.seed.value = seed;
    form.elements.num_images_per_prompt.value = 1;
    form.elements.prompt.focus();
  }

  function remember(runId) {
    const values = form.elements;
    const entry = element("history-row").content.cloneNode(true).querySelector("li");
    entry.querySelector("a").href = `/dashboard/runs/${runId}`;
    entry.querySelector("[data-prompt]").textContent = values.prompt.value;
    entry.querySelector("[data-more]").textContent =
      `${values.deployment.value} · ${values.width.value}×${values.height.value} · ${values.num_inference_steps.value} steps`;
    entry.querySelector(".by").textContent = runId.slice(0, 8);
    element("history").prepend(entry);
    element("history-section").hidden = false;
    row.entry = entry;
    mark("queued");
    return entry;
  }

  function mark(status) {
    const pill = row.entry.querySelector(".pill");
    pill.className = `pill ${status}`;
    pill.textContent = status;
  }

  async function cancel() {
    element("cancel").disabled = true;
    element("progress-text").textContent = "Stopping";
    await ask(`/dashboard/runs/${row.runId}/cancel`, { method: "POST", body: new URLSearchParams() }).catch(trouble);
  }

  function trouble(error) {
    element("trouble").textContent = error.message;
    element("trouble").hidden = false;
  }
}
