// Applications that don't use `using` needn't name the library in which its symbol is.
/// <reference lib="esnext.disposable" preserve="true" />

import { createClient } from './client.js'

/**
 * The application's events and the type of their data. Extend it:
 *
 * ```ts
 * declare module 'tidings-client' {
 *   interface Events { order: { id: number } }
 * }
 * ```
 */
// An empty interface is what declaration merging extends.
export interface Events {}

/** A row of the table `notifications`. */
export interface Notification<T = unknown> {
  /** The row's id. A string, because a bigint may exceed the numbers of JavaScript. */
  readonly id: string
  /** The row's event, or `message` if it has none. */
  readonly event: string
  /** The topic that the row is for: `*` is everyone's. `null` if it is for the user alone. */
  readonly topic: string | null
  /** The application's own key for the row, if it gave one. */
  readonly ref: string | null
  readonly text: string
  /** The text, parsed as JSON at the first use. Throws a SyntaxError if it isn't JSON. */
  readonly data: T
  readonly createdAt: Date
  /** The event's id: a stream that resumes after it continues with the next row. */
  readonly position: string
}

/**
 * - `connecting`: a request is on its way
 * - `catching-up`: connected; receiving what was missed
 * - `live`: connected; new rows arrive as they are committed
 * - `offline`: not connected; the client retries by itself
 * - `denied`: the user isn't logged in, or the page's origin isn't allowed; `reconnect()` tries again
 * - `closed`: the client was closed
 */
export type Status = 'connecting' | 'catching-up' | 'live' | 'offline' | 'denied' | 'closed'

export interface Options {
  /** The stream's address. Default: `/stream`, on the page's origin. */
  url?: string | URL
  /**
   * The user for whom the page was made, as in the token's `sub`: the bridge rejects the credentials of another
   * one, who may have logged in since. Lets all tabs of this user share one stream, and page loads
   * resume where the previous page ended. Without it, each page has a stream of its own.
   */
  user?: string | number
  /**
   * Of the user's topics, only these; the rows for the user alone arrive in any case. `*` is everyone's. Default: all.
   * Tabs with the same topics share a stream.
   */
  topics?: readonly string[]
  /** `false`: don't share a stream with other tabs. Default: `true` if `user` is given. */
  share?: boolean
  /** Begin with the user's last rows, sent or not: 0 to 500. */
  replay?: number
  /** Resume after this event. */
  lastEventId?: string
  /**
   * Requests a new cookie from the application. Called before the old one expires, and after a 401.
   * Resolve to `false` if the user isn't logged in any more: the status becomes `denied`.
   */
  refresh?: () => unknown
  /** Returns a token for `Authorization`. Called for each connection. */
  token?: () => string | Promise<string>
  /** Returns a ticket. Called for each connection. */
  ticket?: () => string | Promise<string>
  /** As in `fetch`. Default: `same-origin`. */
  credentials?: 'omit' | 'same-origin' | 'include'
  /** The bridge's `TIDINGS_HEARTBEAT`, in milliseconds. Default: 15,000. */
  heartbeat?: number
  /** Replaces the global `fetch`. */
  fetch?: typeof globalThis.fetch
  /** Closes the client when it is aborted. */
  signal?: AbortSignal
}

export interface Tidings {
  /** Calls the listener for each row with this event. Returns a function that removes it. */
  on<K extends keyof Events & string>(event: K, listener: (notification: Notification<Events[K]>) => void): () => void
  /** The backlog, or what was missed, has been delivered. */
  on(event: 'caught-up', listener: (event: CaughtUp) => void): () => void
  /** Rows may be missing: load the page's data anew. */
  on(event: 'gap', listener: (event: Gap) => void): () => void
  /** What the stream has of the topics. Once for each connection, and possibly again. */
  on(event: 'topics', listener: (event: Topics) => void): () => void
  /** Every row: `*`. Rows without an event: `message`. */
  on(event: string, listener: (notification: Notification) => void): () => void
  /** The next row with this event. Rejects if the signal is aborted or the client closed. */
  once<K extends keyof Events & string>(event: K, options?: { signal?: AbortSignal }): Promise<Notification<Events[K]>>
  once(event: 'caught-up', options?: { signal?: AbortSignal }): Promise<CaughtUp>
  once(event: 'gap', options?: { signal?: AbortSignal }): Promise<Gap>
  once(event: 'topics', options?: { signal?: AbortSignal }): Promise<Topics>
  once(event: string, options?: { signal?: AbortSignal }): Promise<Notification>
  /** Calls the listener when a property below has changed. Returns a function that removes it. */
  subscribe(listener: () => void): () => void
  readonly status: Status
  /** Why the status is `offline` or `denied`, in the tab that tried to connect; otherwise `null`. */
  readonly error: TidingsError | null
  /** Whether this tab holds the stream. */
  readonly leading: boolean
  /** The id of the last event, after which the stream resumes. */
  readonly lastEventId: string | null
  /** Connects now, also if the status is `denied`. */
  reconnect(): void
  /** Ends everything: the stream, all timers and all listeners. */
  close(): void
  [Symbol.dispose](): void
  /**
   * All rows from now on. If the loop is slower than the rows, 1,000 are kept; then the oldest is
   * dropped, and `gap` is reported with the reason `overflow`.
   */
  [Symbol.asyncIterator](): AsyncGenerator<Notification>
}

export interface CaughtUp {
  readonly rows: number
}

export interface Gap {
  /** `malformed`, `epoch` or `pruned` (see the reference), or `overflow`. */
  readonly reason: string
}

export interface Topics {
  /** How many topics the stream has, besides everyone's. */
  readonly topics: number
  /** Which of `Options.topics` the user doesn't have. */
  readonly refused: readonly string[]
  /** Whether topics were left out because the user has too many. */
  readonly truncated?: boolean
}

/** Why there is no stream. */
export class TidingsError extends Error {
  /** The HTTP status, if there was a response. */
  declare readonly status: number | undefined
  /** The bridge's explanation, if it gave one. */
  declare readonly problem: string | undefined
  override readonly name = 'TidingsError'

  constructor(message: string, status?: number, problem?: string) {
    super(message)
    Object.assign(this, { status, problem })
  }
}

/** Opens the user's stream and keeps it open until `close()`. */
export function connect(options: Options = {}): Tidings {
  return createClient(options, globalThis)
}
