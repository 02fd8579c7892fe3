// The reference on Node: Fastify and pg, the same prepared statements, and nothing else. Every task is on the
// wire as PostgreSQL made it, as it is in the other references.

import Fastify from "fastify";
import pg from "pg";

const port = Number(process.argv[2]);
const statements = JSON.parse(process.env.BENCH_STATEMENTS);
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 });

async function fetch(name, given) {
  const { text, parameters } = statements[name];
  const values = Object.values({ ...parameters, ...given });
  const { rows } = await pool.query({ name, text, values, rowMode: "array" });
  return rows[0];
}

const app = Fastify();
const json = (reply, body, status = 200) => reply.code(status).type("application/json").send(body);

app.get("/livez", (_, reply) => reply.send());

app.get("/api/v1/:user_id/tasks/:id", async ({ params }, reply) => {
  const row = await fetch("read", params);
  return json(reply, row[2]);
});

app.get("/api/v1/:user_id/tasks", async ({ params, query }, reply) => {
  const row = await fetch("list 50", { user_id: params.user_id, limit: Number(query.limit) });
  return json(reply, `{"items":[${row[0] ?? ""}],"next_cursor":${JSON.stringify(row[1])}}`);
});

app.post("/api/v1/:user_id/tasks", async ({ params, body }, reply) => {
  const row = await fetch("create", { user_id: params.user_id, title: body.title });
  return json(reply, row[4], 201);
});

app.patch("/api/v1/:user_id/tasks/:id/complete", async ({ params, body }, reply) => {
  const row = await fetch("complete", { ...params, completed: body.completed });
  return json(reply, row[2]);
});

await app.listen({ host: "127.0.0.1", port });
