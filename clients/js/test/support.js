// A bridge, pages and locks for tests, all under the test's control.

import { mock } from 'node:test'
import { createClient } from '../dist/client.js'

/** Timers and the clock stand still until `passes`. */
export function freezeTime() {
  mock.timers.enable({ apis: ['setTimeout', 'Date'], now: 1_800_000_000_000 })
}

/** Lets promises, streams and channels deliver what they have. */
export async function settle() {
  for (let turn = 0; turn < 12; turn++) await new Promise((resolve) => setImmediate(resolve))
}

export async function passes(milliseconds) {
  await settle()
  mock.timers.tick(milliseconds)
  await settle()
}

/** One response of the bridge. */
class Connection {
  constructor(url, init) {
    this.url = new URL(url)
    this.headers = init.headers
    this.signal = init.signal
    this.init = init
    this.body = new ReadableStream({
      start: (controller) => {
        this.controller = controller
        init.signal.addEventListener('abort', () => {
          this.isAborted = true
          try {
            controller.error(init.signal.reason)
          } catch {
            // It has ended.
          }
        })
      },
    })
  }

  get lastEventId() {
    return this.headers['Last-Event-ID']
  }

  async send(text) {
    if (!this.isAborted) this.controller.enqueue(new TextEncoder().encode(text))
    await settle()
  }

  async end() {
    this.isEnded = true
    this.controller.close()
    await settle()
  }

  async breaks() {
    this.isEnded = true
    this.controller.error(new TypeError('network error'))
    await settle()
  }

  /** What a bridge sends first. */
  async opens({ position = '0-P0', resumed = !!this.lastEventId, rows = 0 } = {}) {
    await this.send(`retry: 3000\n\nevent: tidings.open\ndata: {"resumed":${resumed}}\nid: ${position}\n\n`)
    await this.send(`event: tidings.caught-up\ndata: {"rows":${rows}}\nid: ${position}\n\n`)
  }

  async row(id, options) {
    await this.send(row(id, options))
  }
}

export function row(id, { text = `row ${id}`, event = null, position = `${id}-P${id}`, ...others } = {}) {
  const data = JSON.stringify({ id, event, text, created_at: '2026-11-30T12:00:00.000000Z', ...others })
  return `${event ? `event: ${event}\n` : ''}data: ${data}\nid: ${position}\n\n`
}

export class Bridge {
  connections = []
  /** Decides on each request: a status, a Response, an Error to throw, or nothing for a stream. */
  respond = () => {}

  fetch = async (url, init) => {
    const connection = new Connection(url, init)
    this.connections.push(connection)
    const response = await this.respond(connection, this.connections.length)
    if (response instanceof Error) throw response
    if (response instanceof Response) return response
    if (typeof response === 'number') return problem(response)
    return new Response(connection.body, { headers: { 'Content-Type': 'text/event-stream; charset=utf-8' } })
  }

  get last() {
    return this.connections.at(-1)
  }

  get open() {
    return this.connections.filter(({ isAborted, isEnded }) => !isAborted && !isEnded)
  }
}

export function problem(status) {
  const body = JSON.stringify({ title: 'Problem', status, detail: `because of ${status}` })
  return new Response(body, { status, headers: { 'Content-Type': 'application/problem+json' } })
}

/** Locks as in the browser: a queue for each name, `steal` and `signal`. */
export class Locks {
  #held = new Map()
  #queues = new Map()

  request(name, options, callback) {
    return new Promise((resolve, reject) => {
      const { signal, steal } = options
      if (signal?.aborted) return reject(signal.reason)
      const entry = { callback, resolve, reject }
      const queue = this.#queues.get(name) ?? []
      this.#queues.set(name, queue)
      signal?.addEventListener('abort', () => {
        const index = queue.indexOf(entry)
        if (index < 0) return
        queue.splice(index, 1)
        reject(signal.reason)
      })
      if (steal) {
        const held = this.#held.get(name)
        this.#held.delete(name)
        held?.reject(new DOMException('stolen', 'AbortError'))
        queue.unshift(entry)
      } else {
        queue.push(entry)
      }
      this.#grant(name)
    })
  }

  #grant(name) {
    if (this.#held.has(name)) return
    const entry = this.#queues.get(name)?.shift()
    if (!entry) return
    this.#held.set(name, entry)
    const release = () => {
      if (this.#held.get(name) !== entry) return
      this.#held.delete(name)
      this.#grant(name)
    }
    const use = async () => entry.callback({ name })
    queueMicrotask(() => use().then(entry.resolve, entry.reject).finally(release))
  }

  /** How many wait for a lock. */
  waiting(name) {
    return this.#queues.get(name)?.length ?? 0
  }

  isHeld(name) {
    return this.#held.has(name)
  }
}

class MemoryStorage {
  #items = new Map()
  getItem = (key) => this.#items.get(key) ?? null
  setItem = (key, value) => void this.#items.set(key, value)
  get size() {
    return this.#items.size
  }
}

/** Channels that were not closed. */
export const openChannels = new Set()

/** A page's global object. Pages with the same `locks` are tabs of one browser. */
export class FakePage extends EventTarget {
  document = { visibilityState: 'visible' }
  location = { href: 'https://app.example.org/page' }
  sessionStorage = new MemoryStorage()
  #undelivered = null
  #recovered = null
  #recover = () => {}

  constructor({ locks, sessionStorage } = {}) {
    super()
    if (sessionStorage) this.sessionStorage = sessionStorage
    if (!locks) return
    const page = this
    const request = (name, options, callback) => {
      const granted = async (lock) => {
        await page.#recovered
        return callback(lock)
      }
      const lost = async (error) => {
        await page.#recovered
        throw error
      }
      return locks.request(name, options, granted).catch(lost)
    }
    this.navigator = { locks: { request } }
    this.BroadcastChannel = class extends BroadcastChannel {
      constructor(name) {
        super(name)
        openChannels.add(this)
      }

      set onmessage(listener) {
        super.onmessage = (event) => {
          if (page.#undelivered) page.#undelivered.push(() => listener(event))
          else listener(event)
        }
      }

      close() {
        openChannels.delete(this)
        super.close()
      }
    }
  }

  /** Like a tab that hangs: it hears nothing from other tabs, nor about its lock, and replaces none. */
  hang() {
    this.#undelivered = []
    this.#recovered = new Promise((resolve) => (this.#recover = resolve))
    this.document.visibilityState = 'hidden'
  }

  /** Browsers don't say in which order a page then learns what has happened. */
  async recover({ first = 'messages' } = {}) {
    const undelivered = this.#undelivered
    this.#undelivered = null
    this.#recovered = null
    this.document.visibilityState = 'visible'
    if (first === 'messages') for (const deliver of undelivered) deliver()
    this.#recover()
    await settle()
    if (first !== 'messages') for (const deliver of undelivered) deliver()
    await settle()
  }

  async fire(type) {
    this.dispatchEvent(new Event(type))
    await settle()
  }

  async hide() {
    this.document.visibilityState = 'hidden'
    await this.fire('visibilitychange')
  }

  async show() {
    this.document.visibilityState = 'visible'
    await this.fire('visibilitychange')
  }
}

const tabs = new Set()

/** A page with a client that records what it receives. */
class Tab {
  received = []
  notices = []
  statuses = []

  constructor(bridge, { page = new FakePage(), ...options } = {}) {
    this.page = page
    this.client = createClient({ fetch: bridge.fetch, ...options }, page)
    this.client.on('*', ({ id }) => this.received.push(Number(id)))
    this.client.on('caught-up', (data) => this.notices.push(['caught-up', data]))
    this.client.on('gap', (data) => this.notices.push(['gap', data]))
    this.client.on('topics', (data) => this.notices.push(['topics', data]))
    this.client.subscribe(() => {
      if (this.client.status !== this.statuses.at(-1)) this.statuses.push(this.client.status)
    })
    tabs.add(this)
  }
}

/** Opens a tab and lets it connect. */
export async function openTab(bridge, options) {
  const tab = new Tab(bridge, options)
  await settle()
  return tab
}

/** Ends what a test has begun. */
export async function closeAll() {
  for (const { client } of tabs) client.close()
  tabs.clear()
  await settle()
  mock.timers.reset()
}
