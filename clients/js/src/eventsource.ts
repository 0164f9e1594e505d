import type { Notification, Tidings } from './index.js'

/**
 * Dresses a client as an `EventSource`, for libraries that read from one:
 *
 * - htmx: `htmx.createEventSource = () => asEventSource(client)`
 * - Turbo: `Turbo.connectStreamSource(asEventSource(client))`
 *
 * Each row is an event with the row's text as its data. Closing it leaves the client open.
 */
export function asEventSource(client: Tidings): EventSource {
  return new ClientEventSource(client) as unknown as EventSource
}

class ClientEventSource extends EventTarget {
  readonly CONNECTING = 0
  readonly OPEN = 1
  readonly CLOSED = 2
  readonly url = ''
  readonly withCredentials = true
  onopen: ((event: Event) => void) | null = null
  onerror: ((event: Event) => void) | null = null
  onmessage: ((event: MessageEvent) => void) | null = null
  readyState = 0
  readonly #client: Tidings
  readonly #offs: (() => void)[]

  constructor(client: Tidings) {
    super()
    this.#client = client
    this.#offs = [client.on('*', (notification) => this.#deliver(notification)), client.subscribe(() => this.#update())]
    this.addEventListener('open', (event) => this.onopen?.(event))
    this.addEventListener('error', (event) => this.onerror?.(event))
    this.addEventListener('message', (event) => this.onmessage?.(event as MessageEvent))
    // After the caller had the opportunity to add its listeners.
    queueMicrotask(() => this.#update())
  }

  close() {
    for (const off of this.#offs) off()
    this.readyState = this.CLOSED
  }

  #deliver({ event, text, position }: Notification) {
    this.dispatchEvent(new MessageEvent(event, { data: text, lastEventId: position }))
  }

  #update() {
    const { status } = this.#client
    const isOpen = status === 'live' || status === 'catching-up'
    // A client that is denied is not closed: htmx would open another source, and both would deliver.
    const state = isOpen ? this.OPEN : status === 'closed' ? this.CLOSED : this.CONNECTING
    if (this.readyState === state || this.readyState === this.CLOSED) return
    this.readyState = state
    this.dispatchEvent(new Event(isOpen ? 'open' : 'error'))
  }
}
