// A stand-in for the npm package tidings-client, with the part of its interface that page.js uses:
//
//     const client = tidings.connect({ url, refresh, ticket })
//     client.on('*', ({ id, event, text, data, position }) => …)
//     client.on('caught-up' | 'gap' | 'status', (detail) => …)
//     client.close()
//
// Each tab has its own stream. After a failure it connects again, with growing and random pauses,
// and continues after the last event that it has seen.
globalThis.tidings = (() => {
  const FIRST_WAIT = 1_000 // milliseconds; doubles with each failure
  const LONGEST_WAIT = 60_000
  const SILENCE = 40_000 // more than two heartbeats, which the bridge sends every 15 s

  function connect({ url, refresh, ticket }) {
    const listeners = new Map()
    const wakeups = [[window, 'online'], [window, 'pageshow'], [document, 'visibilitychange']]
    let position = ''
    let retry = 0 // what the bridge asked for
    let failures = 0
    let status = 'connecting'
    let heardAt = Date.now()
    let attempt = new AbortController()
    let wake = () => {}

    function emit(name, detail) {
      for (const listener of listeners.get(name) ?? []) {
        try { listener(detail) } catch (error) { reportError(error) }
      }
    }

    function become(next) {
      if (status === next || status === 'closed') return
      status = next
      emit('status', next)
    }

    // One connection. Resolves when it ends, to whether it delivered anything.
    async function read() {
      const at = new URL(url, location.href)
      at.searchParams.set('errors', 'status')
      if (position) at.searchParams.set('last_event_id', position)
      if (ticket) at.searchParams.set('ticket', await ticket())
      const signal = attempt.signal
      const options = { credentials: 'include', headers: { Accept: 'text/event-stream' }, signal }
      let response = await fetch(at, options)
      if (response.status === 401 && refresh) {
        await refresh()
        response = await fetch(at, options)
      }
      const wait = Number(response.headers.get('Retry-After'))
      if (wait) retry = wait * 1_000
      if (!response.ok) throw new Error(`${at.pathname}: status ${response.status}`)
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
      let text = ''
      for (;;) {
        const { value, done } = await reader.read()
        if (done) return
        heardAt = Date.now()
        const blocks = (text + value).split('\n\n')
        text = blocks.pop()
        blocks.forEach(dispatch)
      }
    }

    // A block of lines, each with a field. The bridge ends lines with a line feed.
    function dispatch(block) {
      const fields = { event: 'message', data: [] }
      for (const line of block.split('\n')) {
        const [, name, value] = line.match(/^([^:]*):? ?(.*)$/)
        if (name === 'data') fields.data.push(value)
        else if (name) fields[name] = value
      }
      if (fields.retry) retry = Number(fields.retry)
      if (fields.id) {
        position = fields.id
        failures = 0
      }
      const text = fields.data.join('\n')
      switch (fields.event) {
        case 'tidings.open': return
        case 'tidings.heartbeat': return
        case 'tidings.caught-up':
          become('live')
          return emit('caught-up', JSON.parse(text))
        case 'tidings.gap': return emit('gap', JSON.parse(text))
        // The new cookie is for the next connection, which follows when this one ends.
        case 'tidings.expiring': return refresh?.().catch(() => {})
        default: if (fields.data.length) emit('*', notification(fields.event, text))
      }
    }

    function notification(event, text) {
      return {
        id: position.split('-')[0], event, text, position,
        get data() { return JSON.parse(text) },
      }
    }

    async function run() {
      while (status !== 'closed') {
        become('connecting')
        attempt = new AbortController()
        try {
          await read()
        } catch (error) {
          if (error.denied) {
            become('denied')
            return
          }
          failures++
        }
        if (status === 'closed') return
        become('offline')
        const backoff = failures ? Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failures - 1)) : 0
        const wait = Math.max(retry, backoff) * (0.5 + Math.random() / 2)
        await new Promise((resolve) => {
          wake = resolve
          setTimeout(resolve, wait)
        })
        await shown()
      }
    }

    // A page that the browser keeps for the back button must not take rows that nobody sees.
    let isLeft = false
    const shown = () => isLeft ? new Promise((resolve) => { wake = resolve }) : undefined
    function leave() {
      isLeft = true
      attempt.abort()
    }

    function check(event) {
      if (event.type === 'pageshow') isLeft = false
      if (document.hidden) return
      if (status === 'offline') wake()
      else if (Date.now() - heardAt > SILENCE) attempt.abort()
    }

    for (const [target, name] of wakeups) target.addEventListener(name, check)
    window.addEventListener('pagehide', leave)
    const timer = setInterval(() => {
      if (status === 'live' && Date.now() - heardAt > SILENCE) attempt.abort()
    }, SILENCE / 4)
    run()

    return {
      on(name, listener) {
        listeners.set(name, [...(listeners.get(name) ?? []), listener])
        return () => listeners.set(name, listeners.get(name).filter((other) => other !== listener))
      },
      get status() { return status },
      close() {
        become('closed')
        clearInterval(timer)
        for (const [target, name] of wakeups) target.removeEventListener(name, check)
        window.removeEventListener('pagehide', leave)
        attempt.abort()
        wake()
      },
    }
  }

  return { connect }
})()
