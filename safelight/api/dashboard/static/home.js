// The first page: the figures that change from moment to moment.
import { ask } from "./page.js";

const EVERY_MS = 5000;
const number = new Intl.NumberFormat("en");

async function look() {
  if (document.hidden) return;
  const now = await ask("/dashboard").catch(() => null);
  if (!now) return;
  for (const place of document.querySelectorAll("[data-live]")) {
    place.textContent = number.format(now[place.dataset.live]).replaceAll(",", "\u2009");
  }
  for (const place of document.querySelectorAll("[data-deployment]")) {
    const found = now.deployments[place.dataset.deployment];
    if (!found) continue;
    const pill = place.querySelector(".pill");
    pill.className = `pill ${found.status}`;
    pill.textContent = found.status;
  }
}

setInterval(look, EVERY_MS);
