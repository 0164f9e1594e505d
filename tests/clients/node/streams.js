// Opens a stream with each library, as its README and docs/clients.md recommend. The same code runs in
// Node.js and in pages.
//
// A stream is { n, url, token_url }. Each event is passed to `emit`, and so is the fact that a client gave up
// and was reopened.

export const names = [
  'message', 'note', 'tidings.open', 'tidings.caught-up', 'tidings.gap', 'tidings.expiring', 'tidings.heartbeat',
]

/** The delay before a client that gave up is reopened; also used for clients that retry() doesn't reach. */
const PAUSE = 50

/** How long a browser may be connecting until its stream is reopened: Firefox may lose a request without reporting it. */
const CONNECTING = 5_000

const fetched = fetch // before a library replaces it
const credentials = async (stream) => (await fetched(stream.token_url)).json()

/** A fetch that sends a token, and a new one after a 401. */
function authorized(stream) {
  let token
  const renew = () => { token = undefined }
  const send = async (input, init = {}) => {
    for (let again = true; ; again = false) {
      token ??= (await credentials(stream)).token
      // Some libraries create a Request themselves.
      const headers = new Headers(init.headers ?? input.headers)
      headers.set('Authorization', `Bearer ${token}`)
      const response = await fetched(input, { ...init, headers })
      if (response.status !== 401 || !again) return response
      renew()
    }
  }
  return { send, renew }
}

/**
 * For libraries that behave like an EventSource. `construct` gets a URL and the token; credentials can't
 * be changed later, so a new one is opened from the last id when they expire or when it has given up.
 * `state` says how that is detected: some are closed and reopen themselves (`persists`), one hides the
 * reasons for failures (`failures`).
 */
async function reopening(stream, emit, construct, state = {}) {
  const { n } = stream
  let last = ''
  const open = async () => {
    const { token, ticket } = await credentials(stream)
    const url = new URL(stream.url)
    if (state.ticket ?? true) url.searchParams.set('ticket', ticket)
    if (last) url.searchParams.set('last_event_id', last)
    const source = construct(url.href, token)
    let isOver = false
    let failures = 0
    let connecting
    const watch = () => {
      clearTimeout(connecting)
      if (state.watched) connecting = setTimeout(give_up, CONNECTING)
    }
    const give_up = () => {
      if (isOver || source.readyState !== 0) return
      emit({ n, gave_up: 'connecting' })
      again()
    }
    const again = () => {
      if (isOver) return
      isOver = true
      clearTimeout(connecting)
      source.close()
      setTimeout(open, PAUSE)
    }
    for (const name of names) {
      source.addEventListener(name, (event) => {
        if (isOver) return
        failures = 0
        if (event.lastEventId) last = event.lastEventId
        emit({ n, event: name, id: event.lastEventId, data: event.data })
        if (name === 'tidings.expiring') again()
      })
    }
    source.addEventListener('open', () => clearTimeout(connecting))
    watch()
    source.addEventListener('error', (event) => {
      watch()
      const status = event?.code ?? event?.status ?? event?.responseCode
      failures += 1
      // Some are closed only after this event.
      setTimeout(() => {
        const isClosed = source.readyState === 2 && !state.persists
        if (isOver || !isClosed && status !== 401 && failures < (state.failures ?? Infinity)) return
        emit({ n, gave_up: String(status || (isClosed ? 'closed' : 'failures')) })
        again()
      })
    })
  }
  await open()
}

/**
 * For libraries that behave like an EventSource and accept a fetch, which gets a new token whenever one
 * is needed. In JSON no notification is empty, so empty events can be skipped.
 */
function fetching(stream, emit, construct, isJson = false) {
  const { n } = stream
  const { send, renew } = authorized(stream)
  let last = ''
  const open = () => {
    const url = new URL(stream.url)
    if (last) url.searchParams.set('last_event_id', last)
    if (isJson) url.searchParams.set('format', 'json')
    const source = construct(url.href, send)
    let isOver = false
    for (const name of names) {
      source.addEventListener(name, (event) => {
        if (isOver) return
        if (event.lastEventId) last = event.lastEventId
        if (event.data || !isJson) emit({ n, event: name, id: event.lastEventId, data: event.data })
        if (name === 'tidings.expiring') renew()
      })
    }
    source.addEventListener('error', (event) => {
      if (isOver || source.readyState !== 2) return
      isOver = true
      emit({ n, gave_up: String(event?.code ?? event?.status ?? '') })
      source.close()
      setTimeout(open, PAUSE)
    })
  }
  open()
}

const bearer = (token) => ({ Authorization: `Bearer ${token}` })

export const clients = {
  native: (stream, emit) => reopening(stream, emit, (url) => new EventSource(url), { watched: true }),

  'eventsource-1': async (stream, emit, load) => {
    const EventSource = await load('eventsource-1')
    return reopening(stream, emit, (url, token) => new EventSource(url, { headers: bearer(token) }), { ticket: false })
  },
  'eventsource-2': async (stream, emit, load) => {
    const EventSource = await load('eventsource-2')
    return reopening(stream, emit, (url, token) => new EventSource(url, { headers: bearer(token) }), { ticket: false })
  },
  'eventsource-3': async (stream, emit, load) => {
    const { EventSource } = await load('eventsource-3')
    fetching(stream, emit, (url, fetch) => new EventSource(url, { fetch }))
  },
  'eventsource-4': async (stream, emit, load) => {
    const { EventSource } = await load('eventsource-4')
    fetching(stream, emit, (url, fetch) => new EventSource(url, { fetch }))
  },
  'eventsource-5': async (stream, emit, load) => {
    const { EventSource } = await load('eventsource-5')
    fetching(stream, emit, (url, fetch) => new EventSource(url, { fetch }))
  },

  'eventsource-client': async (stream, emit, load) => {
    const { createEventSource } = await load('eventsource-client')
    const { send, renew } = authorized(stream)
    createEventSource({
      url: stream.url,
      fetch: send,
      onMessage: ({ id, event, data }) => {
        emit({ n: stream.n, event: event ?? 'message', id, data })
        if (event === 'tidings.expiring') renew()
      },
    })
  },

  'launchdarkly-eventsource': async (stream, emit, load) => {
    const { EventSource } = await load('launchdarkly-eventsource')
    // Without its own timeout it treats that of Node's agent, five seconds, as the end of the stream.
    return reopening(stream, emit, (url, token) => new EventSource(url, {
      headers: bearer(token),
      initialRetryDelayMillis: PAUSE,
      readTimeoutMillis: 60_000,
    }), { ticket: false })
  },

  undici: async (stream, emit, load) => {
    const { EventSource } = await load('undici')
    return reopening(stream, emit, (url) => new EventSource(url))
  },

  'event-source-polyfill': async (stream, emit, load) => {
    const { EventSourcePolyfill } = await load('event-source-polyfill')
    return reopening(stream, emit, (url, token) => new EventSourcePolyfill(url, { headers: bearer(token) }), { ticket: false })
  },

  'reconnecting-eventsource': async (stream, emit, load) => {
    const { default: ReconnectingEventSource } = await load('reconnecting-eventsource')
    // It opens a new native one itself, with the same ticket, but after a 401 a new ticket is needed. The
    // reason for a failed connection isn't visible, so after several failures it may be that.
    const open = (url) => new ReconnectingEventSource(url, { max_retry_time: 4 * PAUSE })
    return reopening(stream, emit, open, { failures: 10 })
  },

  'fetch-event-source': async (stream, emit, load) => {
    const { fetchEventSource } = await load('@microsoft/fetch-event-source')
    const { send, renew } = authorized(stream)
    const url = new URL(stream.url)
    url.searchParams.set('format', 'json')
    await fetchEventSource(url.href, {
      fetch: send,
      openWhenHidden: true,
      onmessage: ({ id, event, data }) => {
        // This library treats a block without data as an event. In JSON no notification is empty.
        if (data) emit({ n: stream.n, event: event || 'message', id, data })
        if (event === 'tidings.expiring') renew()
      },
      // Without this, an orderly end is final.
      onclose: () => { throw new Error('closed') },
      onerror: () => undefined,
    })
  },

  'extended-eventsource': async (stream, emit, load) => {
    const { EventSource } = await load('extended-eventsource')
    // This library too treats a block without data as an event.
    fetching(stream, emit, (url, fetch) => new EventSource(url, { fetch, disableLogger: true, retry: PAUSE }), true)
  },

  'sse.js': async (stream, emit, load) => {
    const { SSE } = await load('sse.js')
    return reopening(stream, emit, (url, token) => new SSE(url, {
      headers: { ...bearer(token), Accept: 'text/event-stream' },
      autoReconnect: true,
      reconnectDelay: PAUSE,
    }), { ticket: false, persists: true })
  },
}
