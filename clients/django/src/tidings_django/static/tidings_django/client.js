// A stand-in for tidings.min.js of the npm package tidings-client, with the part of its interface that
// page.js uses:
//
//     const client = tidings.connect({ url, user, credentials, refresh, ticket })
//     client.on('*' | 'caught-up' | 'gap', (detail) => …)
//     client.subscribe(() => client.status)
//     throw new tidings.TidingsError('logged out', 401) // in refresh and ticket
//
// Each tab has a stream of its own. When it ends or fails, it is opened again after a pause that is
// random and grows with each failure, and continues after the last event.
globalThis.tidings = (() => {
  const FIRST_WAIT = 1_000 // milliseconds; doubles with each failure
  const LONGEST_WAIT = 60_000
  const SILENCE = 45_000 // three of the bridge's heartbeats

  class TidingsError extends Error {
    constructor(message, status) {
      super(message)
      this.status = status
    }
  }

  class Notification {
    constructor(event, position, { text, ref = null }) {
      Object.assign(this, { id: position.split('-')[0], event, text, ref, position })
    }

    get data() { return JSON.parse(this.text) }
  }

  function connect({ url, credentials, refresh, ticket }) {
    const listeners = new Map()
    const subscribers = new Set()
    let status = 'connecting'
    let position = ''
    let retry = 0 // what the bridge asked for
    let failures = 0
    let heardAt = 0
    let isLeft = false // the user has left the page, and the browser keeps it for the back button
    let attempt = new AbortController()
    let wake = () => {}

    function emit(name, detail) {
      for (const listener of listeners.get(name) ?? []) {
        try { listener(detail) } catch (error) { reportError(error) }
      }
    }

    function become(next) {
      if (status === next) return
      status = next
      for (const subscriber of subscribers) subscriber()
    }

    async function open(signal) {
      const at = new URL(url, location.href)
      at.searchParams.set('format', 'json')
      if (position) at.searchParams.set('last_event_id', position)
      if (ticket) at.searchParams.set('ticket', await ticket())
      const headers = { Accept: 'text/event-stream' }
      const request = () => fetch(at, { credentials, headers, signal })
      let response = await request()
      if (response.status === 401 && refresh) {
        await refresh()
        response = await request()
      }
      if (!response.ok) throw new Error(`${at.pathname}: status ${response.status}`)
      return response.body
    }

    async function read(signal) {
      heardAt = Date.now()
      const body = await open(signal)
      const reader = body.pipeThrough(new TextDecoderStream()).getReader()
      let text = ''
      for (let chunk; !(chunk = await reader.read()).done; ) {
        heardAt = Date.now()
        const blocks = (text + chunk.value).split('\n\n')
        text = blocks.pop()
        blocks.forEach(take)
      }
    }

    // Lines, each with a field. The bridge ends them with line feeds.
    function take(block) {
      const fields = { event: 'message' }
      const data = []
      for (const line of block.split('\n')) {
        const [, name, value] = line.match(/^([^:]*):? ?(.*)$/)
        if (name === 'data') data.push(value)
        else fields[name] = value
      }
      const text = data.join('\n')
      if (fields.retry) retry = Number(fields.retry)
      if (fields.id) {
        position = fields.id
        failures = 0
      }
      switch (fields.event) {
        case 'tidings.open': return become('catching-up')
        case 'tidings.heartbeat': return
        case 'tidings.caught-up':
          become('live')
          return emit('caught-up', JSON.parse(text))
        case 'tidings.gap': return emit('gap', JSON.parse(text))
        // For the next connection, which follows when this one ends.
        case 'tidings.expiring': return refresh?.().catch(() => {})
      }
      if (data.length) emit('*', new Notification(fields.event, position, JSON.parse(text)))
    }

    async function run() {
      for (;;) {
        become('connecting')
        attempt = new AbortController()
        try {
          await read(attempt.signal)
        } catch (error) {
          if (error.status === 401) return become('denied')
          failures++
        }
        become('offline')
        const backoff = failures ? Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failures - 1)) : 0
        const wait = Math.max(retry, backoff) * (0.5 + Math.random() / 2)
        do {
          await new Promise((resolve) => {
            wake = resolve
            setTimeout(resolve, wait)
          })
        } while (isLeft)
      }
    }

    // Rows that reach a page that nobody sees would count as sent.
    function leave() {
      isLeft = true
      attempt.abort()
    }

    function check(event) {
      if (event?.type === 'pageshow') isLeft = false
      if (document.hidden) return
      if (status === 'offline') wake()
      else if (Date.now() - heardAt > SILENCE) attempt.abort()
    }

    const wakeups = [[window, 'online'], [window, 'pageshow'], [document, 'visibilitychange']]
    for (const [target, name] of wakeups) target.addEventListener(name, check)
    window.addEventListener('pagehide', leave)
    setInterval(() => status === 'live' && check(), SILENCE / 3)
    run()

    return {
      on(name, listener) {
        listeners.set(name, [...(listeners.get(name) ?? []), listener])
      },
      subscribe(listener) {
        subscribers.add(listener)
      },
      get status() { return status },
    }
  }

  return { connect, TidingsError }
})()
