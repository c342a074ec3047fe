// Keeps the page up to date, and gives orders with the operator's token. The server renders everything; nothing that
// comes from it is put into the page as text of this script. The token is read from its field for each request, goes
// into the Authorization header, and is stored nowhere.
"use strict";
const EVERY_MS = 2000;
const byId = (id) => document.getElementById(id);
let paused = false;

function filter() {
  const field = byId("find");
  if (!field) return;
  const wanted = field.value.trim().toLowerCase();
  const rows = document.querySelectorAll("#refusals tbody tr");
  let shown = 0;
  for (const row of rows) {
    row.hidden = wanted !== "" && !row.textContent.toLowerCase().includes(wanted);
    shown += row.hidden ? 0 : 1;
  }
  byId("found").textContent = wanted === "" ? "" : `${shown} of ${rows.length}`;
}

// A section in which the operator types or scrolls is left as it is; its rows are not taken from under the cursor.
function replace(fresh) {
  for (const section of fresh.querySelectorAll("#live > section, body > section")) {
    const old = byId(section.id);
    if (!old) continue;
    if (old.contains(document.activeElement) && section.id !== "refusals") continue;
    if (section.id === "refusals") {
      const table = old.querySelector(".wide, p.dim:last-child");
      const next = section.querySelector(".wide, p.dim:last-child");
      if (table && next && !table.contains(document.activeElement)) table.replaceWith(next);
      continue;
    }
    old.replaceWith(section);
  }
  filter();
}

async function update() {
  if (paused || document.hidden) return;
  try {
    const answer = await fetch("console/live", { credentials: "omit", cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
    byId("freshness").textContent = "";
  } catch {
    byId("freshness").textContent = "No answer: the numbers are old.";
  }
}

async function send(path, body) {
  const result = byId("result");
  result.textContent = "...";
  try {
    const answer = await fetch(path, {
      method: "POST", credentials: "omit", cache: "no-store", redirect: "error",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${byId("token").value}` },
      body: JSON.stringify(body),
    });
    const told = await answer.json();
    result.textContent = told.lines ? told.lines.join("\n") : JSON.stringify(told, null, 1);
    if (answer.ok) update();
  } catch {
    result.textContent = "No answer; the order may have been carried out.";
  }
}

function order() {
  const verb = byId("verb").value;
  const body = {};
  if (verb === "shadow") body.on = byId("on").checked;
  else body.principal = byId("principal").value.trim();
  const rule = byId("rule").value.trim();
  if (rule && ["overrides", "overrides/remove", "reset"].includes(verb)) body.rule = rule;
  if (verb === "overrides") body.limit = byId("limit").value.trim();
  const time = byId("for").value.trim();
  if (time && ["block", "overrides", "shadow"].includes(verb)) body.for = time;
  return [verb, body];
}

function confirmed(text) {
  const dialog = byId("confirm");
  byId("confirm-text").textContent = text;
  dialog.showModal();
  byId("confirm-no").focus();
  return new Promise((decide) => {
    const end = (answer) => { dialog.close(); decide(answer); };
    byId("confirm-yes").onclick = () => end(true);
    byId("confirm-no").onclick = () => end(false);
    dialog.oncancel = () => decide(false);
  });
}

async function give() {
  const [verb, body] = order();
  const told = Object.entries(body).map(([name, value]) => `${name} ${value}`).join(", ");
  if (verb !== "peek" && !(await confirmed(`${verb}: ${told}`))) return;
  await send(`operator/v1/${verb}`, body);
}

document.addEventListener("input", (event) => { if (event.target.id === "find") filter(); });
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-verb]");
  if (!button) return;
  byId("verb").value = button.dataset.verb;
  byId("principal").value = button.dataset.principal;
  byId("rule").value = button.dataset.verb === "overrides" ? button.dataset.rule : "";
  byId("operator").scrollIntoView();
  (byId("token").value ? byId("verb") : byId("token")).focus();
});
if (byId("operator")) {
  byId("operator").addEventListener("submit", (event) => { event.preventDefault(); give(); });
  byId("explain").addEventListener("submit", (event) => {
    event.preventDefault();
    send("console/explain", {
      method: byId("x-method").value, url: byId("x-url").value, peer: byId("x-peer").value, headers: byId("x-headers").value,
    });
  });
}
byId("pause").hidden = false;
byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  byId("freshness").textContent = paused ? "Paused." : "";
});
setInterval(update, EVERY_MS);
