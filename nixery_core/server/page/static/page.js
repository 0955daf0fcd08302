// The page works without this file. It completes names, copies commands, and keeps an eye on builds.
"use strict";

document.documentElement.classList.add("scripted");

// --- names of packages, as somebody types ---
for (const input of document.querySelectorAll("[data-complete]")) {
  const list = document.getElementById(input.getAttribute("list"));
  let timer = 0;
  let asked = "";
  input.addEventListener("input", () => {
    clearTimeout(timer);
    const typed = input.value.split(/[\s,/]+/).pop();
    if (typed === "" || typed === asked) return;
    timer = setTimeout(async () => {
      asked = typed;
      try {
        const answer = await fetch(input.dataset.complete + "?q=" + encodeURIComponent(typed));
        const { names } = await answer.json();
        if (asked !== typed) return;
        const before = input.value.slice(0, input.value.length - typed.length);
        list.replaceChildren(
          ...names.map((name) => Object.assign(document.createElement("option"), { value: before + name })),
        );
      } catch {
        // what is typed is good without it
      }
    }, 120);
  });
}

// --- commands to copy ---
for (const button of document.querySelectorAll("[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  const words = button.innerHTML;
  button.hidden = false;
  button.addEventListener("click", async () => {
    let copied = true;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // without TLS browsers give no clipboard: select it, one key is left to press
      getSelection().selectAllChildren(source);
      copied = false;
    }
    button.textContent = copied ? "Copied" : "Selected";
    button.classList.add("told");
    say(copied ? "The command was copied." : "The command is selected; press Control C to copy it.");
    setTimeout(() => {
      button.innerHTML = words;
      button.classList.remove("told");
    }, 2000);
  });
}

// --- one place that tells those who hear the page what has happened ---
const teller = Object.assign(document.createElement("p"), { className: "unseen" });
teller.setAttribute("role", "status");
document.body.append(teller);
function say(text) {
  teller.textContent = text;
}

// --- regions that follow what they show ---
const EVERY = 1500;
for (const region of document.querySelectorAll("[data-live]")) {
  if (region.querySelector("[data-over]")) continue;
  const box = document.createElement("label");
  box.className = "switch";
  box.innerHTML = '<input type="checkbox" checked> Live';
  const [live] = box.children;
  live.setAttribute("aria-label", "Follow " + region.dataset.label + " live");
  region.before(box);
  const states = () => [...region.querySelectorAll(".state")].map((state) => state.textContent).join();
  const look = async () => {
    // whoever reads or works in it is not disturbed
    const busy = region.contains(document.activeElement) || !getSelection().isCollapsed;
    if (live.checked && !document.hidden && !busy) {
      try {
        const answer = await fetch(region.dataset.live);
        const text = await answer.text();
        if (answer.ok && text !== region.dataset.text) {
          const before = states();
          region.innerHTML = text;
          region.dataset.text = text;
          if (states() !== before) say(region.dataset.label + " changed: " + (states().split(",")[0] || ""));
        }
        if (region.querySelector("[data-over]")) {
          box.remove();
          return;
        }
      } catch {
        // the registry is restarted, perhaps: look again
      }
    }
    setTimeout(look, EVERY);
  };
  setTimeout(look, EVERY);
}
