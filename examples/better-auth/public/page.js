// The whole client: the session is a cookie of this origin, the API gets a JWT that is kept in memory only.
const config = await (await fetch("/config.json")).json();
const $ = (id) => document.getElementById(id);

/** Ask the auth server, with the session's cookie; throws what it answers. */
async function ask(path, body) {
  const answer = await fetch(config.auth + path, body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.message || said.error_description || answer.statusText);
  return said;
}

let token = "";

/** Ask taskctl with the JWT; a token that has expired is replaced once. */
async function api(method, path, body, { renew = true } = {}) {
  token ||= (await ask("/token")).token;
  const headers = { Authorization: `Bearer ${token}` };
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(config.taskctl + path, { method, headers, body: body && JSON.stringify(body) });
  if (answer.status === 401 && renew) {
    token = "";
    return api(method, path, body, { renew: false });
  }
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.detail || said.title);
  return said;
}

async function showTasks() {
  const { items } = await api("GET", "/api/v1/me/tasks");
  $("tasks").replaceChildren(...items.map((task) => {
    const line = document.createElement("li");
    line.textContent = task.title;
    return line;
  }));
}

async function show() {
  const session = await ask("/get-session");
  $("entrance").hidden = Boolean(session);
  $("inside").hidden = !session;
  if (!session) return;
  $("who").textContent = session.user.email;
  await showTasks();
}

/** Run what somebody asked for, and say on the page what went wrong. */
async function run(work) {
  $("problem").textContent = "";
  try {
    await work();
  } catch (error) {
    $("problem").textContent = error.message;
  }
}

/** Handle a form's submission; `work` gets its fields, with the pressed button's among them. */
function onSubmit(id, work) {
  $(id).addEventListener("submit", (event) => {
    event.preventDefault();
    const fields = Object.fromEntries(new FormData(event.target, event.submitter));
    run(() => work(fields, event.target));
  });
}

onSubmit("entrance", async ({ email, password, action }) => {
  await ask(`/${action}/email`, { email, password, name: email.split("@")[0] });
  await show();
});

onSubmit("device", async ({ code, action }) => {
  // Looking a code up binds it to who is signed in; only they can decide about it then.
  await ask(`/device?user_code=${encodeURIComponent(code)}`);
  await ask(`/device/${action}`, { userCode: code });
  $("decision").textContent = action === "approve" ? "Approved." : "Denied.";
});

onSubmit("new-task", async ({ title }, form) => {
  await api("POST", "/api/v1/me/tasks", { title });
  form.reset();
  await showTasks();
});

$("sign-out").addEventListener("click", () => run(async () => {
  await ask("/sign-out", {});
  token = "";
  await show();
}));

$("device").elements.code.value = new URLSearchParams(location.search).get("user_code") ?? "";
await run(show);
