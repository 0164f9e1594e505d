// What a Node developer can write in an afternoon: rows arrive as NOTIFY payloads and are sent to
// the sessions of their user; a client that returns with a last id receives the rows above it. The
// usual environment variables say where Postgres is (PGHOST, PGUSER, PGDATABASE).

import { createServer } from 'node:http'
import { createSession } from 'better-sse'
import pg from 'pg'

const pool = new pg.Pool({ max: 10 })
const sessions = new Map() // user → Set of sessions

const missed = 'select id, text from notifications where user_id = $1 and id > $2 order by id'

function push(session, { id, text }) {
  session.push(text, 'message', String(id))
}

async function stream(request, response) {
  const user = new URL(request.url, 'http://localhost').searchParams.get('user')
  if (!user) return response.writeHead(400).end()

  const session = await createSession(request, response, { serializer: (text) => text })
  if (!sessions.has(user)) sessions.set(user, new Set())
  sessions.get(user).add(session)
  session.once('disconnected', () => {
    sessions.get(user).delete(session)
    if (sessions.get(user).size === 0) sessions.delete(user)
  })

  if (session.lastId) {
    // Rows that arrive in the meantime are held back, and those that the query also found are
    // dropped.
    session.state.waiting = []
    const { rows } = await pool.query(missed, [user, session.lastId])
    for (const row of rows) push(session, row)
    const last = Number(rows.at(-1)?.id ?? session.lastId)
    for (const row of session.state.waiting) if (row.id > last) push(session, row)
    session.state.waiting = undefined
  }
}

async function listen() {
  const client = new pg.Client()
  client.on('notification', ({ payload }) => {
    const row = JSON.parse(payload)
    for (const session of sessions.get(row.user_id) ?? []) {
      if (session.state.waiting) session.state.waiting.push(row)
      else push(session, row)
    }
  })
  // Otherwise the loss of the listener would go unnoticed. Exit, so that a supervisor can restart
  // the process.
  client.on('error', (error) => {
    console.error(error)
    process.exit(1)
  })
  await client.connect()
  await client.query('listen notifications')
}

await listen()
createServer((request, response) => {
  stream(request, response).catch((error) => response.destroy(error))
}).listen({ port: Number(process.env.PORT), host: '127.0.0.1', backlog: 4096 })
