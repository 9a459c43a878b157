// The page of a run that has not ended: its progress, and the whole page anew when something came of it.
import { follow } from "./follow.js";

const live = document.getElementById("live");
const text = document.getElementById("progress-text");
const bar = document.getElementById("bar");
const imagesShown = document.querySelectorAll(".result").length;
const imagesSeen = new Set();

follow(live.dataset.run, {
  progress(fraction, words) {
    bar.value = fraction;
    text.textContent = words;
  },
  preview: (picture) => document.getElementById("preview").replaceChildren(picture),
  image(index) {
    // A stream that is opened anew tells of all of them again.
    imagesSeen.add(index);
    if (imagesSeen.size > imagesShown) window.location.reload();
  },
  end: () => window.location.reload(),
});
