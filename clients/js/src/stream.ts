import { CAUGHT_UP } from './history.js'
import { TidingsError, type Status } from './index.js'
import { createParser, type Block } from './parser.js'
import type { Settings } from './settings.js'

const FIRST_WAIT = 1_000 // milliseconds; doubles with each failure
const LONGEST_WAIT = 60_000
const SHORTEST_RETRY = 100 // the bounds of what a server may ask for; timers overflow at 2^31
const LONGEST_RETRY = 3_600_000
const WAKE_WAIT = 1_000 // at most; not all clients of a network are to return at the same moment
const MISSED_HEARTBEATS = 3
/** After this many intervals, a heartbeat is late. */
export const LATE = 4 / 3

export interface Stream {
  connect(): void
  /**
   * Connects if the connection may have died unnoticed. Returns whether an attempt had failed; then the next
   * one follows soon, unless the server asked to wait.
   */
  wake(): boolean
  close(): void
}

/** Keeps a stream open: connects, reads, and connects again whenever it has ended. */
export function createStream(
  settings: Settings,
  /** The event after which to resume; empty: begin with the backlog. */
  getPosition: () => string,
  take: (block: Block) => void,
  setStatus: (status: Status, error?: TidingsError) => void,
): Stream {
  const { heartbeat, replay, refresh, token, ticket, credentials, fetch = globalThis.fetch } = settings
  const canRenew = refresh || token || ticket
  let attempt: AbortController | undefined
  let timer: ReturnType<typeof setTimeout> | undefined
  let heardAt = 0 // when the last byte arrived, or the attempt began
  let retry = 0 // what the server asked for
  let notBefore = 0 // the time until which it asked to wait
  let failures = 0
  let isUnauthorized = false // the last response was a 401

  function close() {
    attempt?.abort()
    clearTimeout(timer)
    attempt = timer = undefined
  }

  function connect() {
    close()
    const mine = (attempt = new AbortController())
    heardAt = Date.now()
    watch()
    setStatus('connecting')
    read(mine.signal).then(
      (wait) => mine === attempt && retryAfter(wait),
      (error) => mine === attempt && fail(error),
    )
  }

  // This covers everything that may take forever: `refresh`, `fetch`, and a stream that has gone silent.
  function watch() {
    const left = heardAt + MISSED_HEARTBEATS * heartbeat - Date.now()
    if (left > 0) timer = setTimeout(watch, left)
    else fail('no heartbeat')
  }

  function fail(reason: unknown) {
    const error = reason instanceof TidingsError ? reason : new TidingsError(`${reason}`)
    if (error.status === 401 || error.status === 403) {
      close()
      setStatus('denied', error)
    } else {
      retryAfter(backoff(), error)
    }
  }

  function retryAfter(wait: number, error?: TidingsError) {
    close()
    timer = setTimeout(connect, Math.min(Math.max(wait, SHORTEST_RETRY), LONGEST_RETRY))
    setStatus('offline', error)
  }

  function backoff(): number {
    const wait = Math.max(retry, Math.min(FIRST_WAIT * 2 ** failures++, LONGEST_WAIT))
    return wait * (1 + Math.random() / 2)
  }

  async function renew() {
    if ((await refresh?.()) === false) throw new TidingsError('logged out', 401)
  }

  /** Makes a connection and reads it to its end. Returns how long to wait before the next one. */
  async function read(signal: AbortSignal): Promise<number> {
    if (isUnauthorized) await renew()
    const position = getPosition()
    const url = new URL(settings.url)
    const { searchParams } = url
    const headers: Record<string, string> = { Accept: 'text/event-stream' }
    searchParams.set('format', 'json')
    if (position) headers['Last-Event-ID'] = position
    else if (replay) searchParams.set('replay', `${replay}`)
    if (token) headers.Authorization = `Bearer ${await token()}`
    if (ticket) searchParams.set('ticket', await ticket())
    if (signal.aborted) return 0 // not every `fetch` looks
    const response = await fetch(url, { headers, credentials: credentials!, cache: 'no-store', signal })
    const { status } = response
    if (status === 401 && !isUnauthorized && canRenew) {
      isUnauthorized = true
      return read(signal)
    }
    if (status !== 200 || !response.headers.get('Content-Type')?.startsWith('text/event-stream')) {
      const body = await response.json().catch(() => null)
      throw new TidingsError(`no event stream: status ${status}`, status, body?.detail)
    }
    isUnauthorized = false

    let isOpen = false
    let asked = 0
    const parse = createParser(
      position,
      (block) => {
        if (signal.aborted) return
        if (block.type === 'tidings.open') {
          isOpen = true
          failures = 0
          setStatus('catching-up')
        }
        if (block.type === CAUGHT_UP) setStatus('live')
        if (block.type === 'tidings.expiring' && canRenew)
          // If this fails, the 401 after the end of this connection is the next occasion.
          renew().then(
            () => signal.aborted || connect(),
            () => {},
          )
        take(block)
      },
      (milliseconds) => (asked = retry = milliseconds),
    )
    const reader = response.body!.getReader()
    for (let chunk; !(chunk = await reader.read()).done && !signal.aborted; ) {
      heardAt = Date.now()
      parse(chunk.value)
    }
    // A bridge that is full or stopping ends the response before a stream begins.
    if (!isOpen) notBefore = Date.now() + asked
    return asked || backoff()
  }

  return {
    connect,
    close,
    wake() {
      if (attempt && Date.now() > heardAt + heartbeat * LATE) connect()
      if (attempt || !timer || Date.now() < notBefore) return false
      failures = 0
      close()
      timer = setTimeout(connect, Math.random() * WAKE_WAIT)
      return true
    },
  }
}
