// Compiled, never run. Each `@ts-expect-error` fails if there is no error.

import { connect, TidingsError, type Notification, type Options, type Status, type Tidings } from 'tidings-client'
import { asEventSource } from 'tidings-client/eventsource'

declare module 'tidings-client' {
  interface Events {
    order: { id: number; total: string }
  }
}

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
function isTrue<_ extends true>() {}

const client: Tidings = connect()
connect({ url: new URL('https://stream.example.org/stream'), user: 7, replay: 20 })
connect({ user: 'alice', refresh: () => fetch('/stream-cookie', { method: 'POST' }) })
connect({ token: () => 'x', signal: new AbortController().signal, fetch })
connect({ ticket: async () => 'x', topics: ['team:7'] as const })
// @ts-expect-error: no such option
connect({ refersh: () => {} })
// @ts-expect-error: a template that forgot the user
connect({ user: null })
// @ts-expect-error
connect({ token: () => 7 })
// @ts-expect-error: several
connect({ topics: 'team:7' })
const options: Options = {}
// @ts-expect-error: options aren't changed later
options.credentials = 'all'

client.on('order', (notification) => {
  isTrue<Equal<typeof notification, Notification<{ id: number; total: string }>>>()
  // @ts-expect-error: no such property
  notification.data.nothing
  // @ts-expect-error: what was received doesn't change
  notification.text = ''
})
client.on('comment', (notification) => isTrue<Equal<typeof notification.data, unknown>>())
client.on('*', ({ id, event, text, topic, ref, createdAt, position }) => {
  isTrue<Equal<typeof id | typeof event | typeof text | typeof position, string>>()
  isTrue<Equal<typeof topic, string | null>>()
  isTrue<Equal<typeof ref, string | null>>()
  isTrue<Equal<typeof createdAt, Date>>()
})
client.on('caught-up', ({ rows }) => isTrue<Equal<typeof rows, number>>())
client.on('gap', ({ reason }) => isTrue<Equal<typeof reason, string>>())
client.on('topics', ({ topics, refused }) => {
  isTrue<Equal<typeof topics, number>>()
  isTrue<Equal<typeof refused, readonly string[]>>()
})
const off = client.on('*', () => {})
isTrue<Equal<typeof off, () => void>>()
// @ts-expect-error
client.on('*', 'x')

const order = await client.once('order', { signal: AbortSignal.timeout(1_000) })
isTrue<Equal<typeof order.data, { id: number; total: string }>>()
const { rows } = await client.once('caught-up')
isTrue<Equal<typeof rows, number>>()
const { truncated } = await client.once('topics')
isTrue<Equal<typeof truncated, boolean | undefined>>()
for await (const notification of client) isTrue<Equal<typeof notification, Notification>>()

isTrue<Equal<typeof client.status, Status>>()
isTrue<Equal<typeof client.error, TidingsError | null>>()
isTrue<Equal<typeof client.lastEventId, string | null>>()
// @ts-expect-error
client.status = 'live'
// @ts-expect-error
if (client.status === 'open') client.reconnect()

{
  using scoped = connect()
  scoped.subscribe(() => {})
}

const source: EventSource = asEventSource(client)
source.close()
