// Forwards rows to nchan: one POST per row, over kept-alive connections. Rows of one user are sent
// one after the other, so that they don't overtake each other; rows of different users are sent
// concurrently.

import { Agent, request } from 'node:http'
import pg from 'pg'

const CONNECTIONS = 16
// How often to retry while nginx starts.
const PATIENCE_MS = 100
const ATTEMPTS = 50

const agent = new Agent({ keepAlive: true, maxSockets: CONNECTIONS })
const busy = new Map() // user → texts waiting for the request in flight

function post(user, text) {
  return new Promise((resolve, reject) => {
    const path = `/pub?id=${encodeURIComponent(user)}`
    const options = { agent, port: process.env.PORT, host: '127.0.0.1', path, method: 'POST' }
    const posting = request(options, (response) => {
      response.resume().once('end', () => {
        if (response.statusCode < 300) resolve()
        else reject(new Error(`nchan answers ${response.statusCode}`))
      })
    })
    posting.once('error', reject).end(text)
  })
}

async function forward(user) {
  const waiting = busy.get(user)
  while (waiting.length > 0) await post(user, waiting.shift())
  busy.delete(user)
}

function fail(error) {
  console.error(error)
  process.exit(1)
}

async function untilNginxAnswers() {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await post('probe', 'ping')
    } catch (error) {
      if (attempt === ATTEMPTS) throw error
      await new Promise((resolve) => setTimeout(resolve, PATIENCE_MS))
    }
  }
}

await untilNginxAnswers()
const client = new pg.Client()
client.on('notification', ({ payload }) => {
  const { user_id: user, text } = JSON.parse(payload)
  if (busy.has(user)) return void busy.get(user).push(text)
  busy.set(user, [text])
  forward(user).catch(fail)
})
client.on('error', fail)
await client.connect()
await client.query('listen notifications')
