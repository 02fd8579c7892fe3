// Better Auth and one page, on Node's own HTTP server. README.md has the settings.
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { toNodeHandler } from "better-auth/node";
import { createAuth } from "./auth.js";

// A new secret at every start is enough, as the users are forgotten too.
const env = { BETTER_AUTH_SECRET: randomBytes(32).toString("base64"), ...process.env };
const host = env.HOST || "127.0.0.1";
const taskctl = env.TASKCTL_URL || "http://127.0.0.1:8000";

const file = (name) => readFile(new URL(`public/${name}`, import.meta.url));
const [html, css, js] = await Promise.all(["page.html", "page.css", "page.js"].map(file));

const server = createServer();
server.listen(Number(env.PORT || 3000), host);
await once(server, "listening");
const url = new URL(env.BETTER_AUTH_URL || `http://${host}:${server.address().port}`);
// A path in this URL is where Better Auth's routes begin.
if (url.pathname === "/") url.pathname = "/api/auth";
const handleAuth = toNodeHandler(createAuth(url.href, env));

const files = {
  "/": ["text/html; charset=utf-8", html],
  "/device": ["text/html; charset=utf-8", html],
  "/page.css": ["text/css; charset=utf-8", css],
  "/page.js": ["text/javascript; charset=utf-8", js],
  "/config.json": ["application/json", JSON.stringify({ auth: url.pathname, taskctl })],
};
const policy =
  `default-src 'self'; connect-src 'self' ${new URL(taskctl).origin}; img-src data:; frame-ancestors 'none'`;

server.on("request", (request, response) => {
  const [path] = request.url.split("?");
  if (path.startsWith(`${url.pathname}/`)) return handleAuth(request, response);
  const [type, body] = files[path] ?? [];
  if (!type) return response.writeHead(404).end();
  response.writeHead(200, {
    "Content-Type": type,
    "Content-Security-Policy": policy,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
  });
  response.end(body);
});

console.log(`Ready at ${url.origin}`);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit());
