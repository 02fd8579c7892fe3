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

const server = createServer();
server.listen(Number(env.PORT || 3000), host);
await once(server, "listening");
const url = env.BETTER_AUTH_URL || `http://${host}:${server.address().port}`;
const auth = createAuth(url, env);
const handleAuth = toNodeHandler(auth);

const file = (name) => readFile(new URL(`public/${name}`, import.meta.url));
const files = {
  "/": ["text/html; charset=utf-8", await file("page.html")],
  "/device": ["text/html; charset=utf-8", await file("page.html")],
  "/page.css": ["text/css; charset=utf-8", await file("page.css")],
  "/page.js": ["text/javascript; charset=utf-8", await file("page.js")],
  "/config.json": ["application/json", JSON.stringify({ auth: auth.options.basePath, taskctl })],
};

server.on("request", (request, response) => {
  const [pathname] = request.url.split("?");
  if (pathname.startsWith(`${auth.options.basePath}/`)) return handleAuth(request, response);
  const [type, body] = files[pathname] ?? [];
  if (!type) return response.writeHead(404).end();
  response.writeHead(200, {
    "Content-Type": type,
    "Content-Security-Policy": `default-src 'self'; connect-src 'self' ${new URL(taskctl).origin}; img-src data:; frame-ancestors 'none'`,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
  });
  response.end(body);
});

console.log(`Ready at ${url}`);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit());
