import { createHistory, type Step } from './history.js'
import { TidingsError, type Notification, type Options, type Tidings } from './index.js'
import { ifAllowed, type Page } from './page.js'
import { check } from './settings.js'
import { createSharing } from './sharing.js'

const BUFFERED = 1_000 // notifications
// The events whose names on the client are its own.
const OWN = /^tidings\.(caught-up|gap|\*)$/
const CHANGE = 'tidings.change' // no row's event begins like this

export function createClient(options: Options, page: Page): Tidings {
  const settings = check(options, page)
  const { name, replay, lastEventId, signal } = settings
  const closing = new AbortController()
  const closed = closing.signal
  // An event target calls all listeners and reports what they throw.
  let target = new EventTarget()
  let isPaused = false

  // Without a user, the page before may have been another user's, whose position would hide rows.
  const stored = name && !replay && ifAllowed(() => page.sessionStorage?.getItem(name))
  const history = createHistory(lastEventId || stored || '', (position) => {
    if (name) ifAllowed(() => page.sessionStorage?.setItem(name, position))
  })

  const sharing = createSharing(settings, page, history, deliver, setState)

  function deliver(step: Step) {
    if (closed.aborted) return
    const notification = history.apply(step)
    if (notification) {
      const { event } = notification
      if (!OWN.test(`tidings.${event}`)) emit(event, notification)
      emit('*', notification)
    }
    const notice = OWN.exec(step.type!)
    if (notice) emit(notice[1]!, step.data)
  }

  function setState(changes: Partial<Tidings>) {
    const { status, leading } = client
    if (closed.aborted) return
    Object.assign(client, changes)
    if (status !== client.status || leading !== client.leading) emit(CHANGE)
  }

  function emit(event: string, detail?: unknown) {
    target.dispatchEvent(new CustomEvent(event, { detail }))
  }

  function on(event: string, listener: (value: any) => void, options = {}): () => void {
    if (typeof listener !== 'function') throw new TypeError('tidings: a listener must be a function')
    const take = (event: Event) => listener((event as CustomEvent).detail)
    target.addEventListener(event, take, options)
    return () => target.removeEventListener(event, take)
  }

  function takeLife({ type }: Event) {
    history.save()
    if (type === 'pagehide' || type === 'freeze') {
      // The page may never be used again, and must not keep other tabs waiting.
      sharing.close()
      setState({ status: 'offline', error: null })
      isPaused = true
    } else if (isPaused) {
      isPaused = false
      sharing.connect()
    } else {
      sharing.wake()
    }
  }

  function close() {
    sharing.close()
    setState({ status: 'closed', error: null })
    closing.abort(new TidingsError('closed'))
    target = new EventTarget()
  }

  const client = {
    status: 'connecting',
    error: null,
    leading: false,
    get lastEventId() {
      return history.position() || null
    },
    on,
    subscribe: (listener: () => void) => on(CHANGE, listener),
    once(event: string, { signal }: { signal?: AbortSignal } = {}) {
      const done = new AbortController()
      const options = { signal: done.signal }
      const value = new Promise((resolve, reject) => {
        on(event, resolve, options)
        for (const end of [closed, signal]) {
          end?.addEventListener('abort', () => reject(end.reason), options)
          if (end?.aborted) reject(end.reason)
        }
      })
      return value.finally(() => done.abort())
    },
    async *[Symbol.asyncIterator]() {
      const buffer: Notification[] = []
      let wake = () => {}
      const offs = [
        on(CHANGE, () => wake()), // among others, that the client was closed
        on('*', (notification) => {
          if (buffer.push(notification) > BUFFERED) {
            buffer.shift()
            emit('gap', { reason: 'overflow' })
          }
          wake()
        }),
      ]
      try {
        while (buffer.length || !closed.aborted) {
          if (buffer.length) yield buffer.shift()!
          else await new Promise<void>((resolve) => (wake = resolve))
        }
      } finally {
        for (const off of offs) off()
      }
    },
    reconnect() {
      if (isPaused || closed.aborted) return
      sharing.close()
      sharing.connect()
    },
    close,
    // Browsers without the symbol don't use it.
    [Symbol.dispose ?? Symbol()]: close,
  } as Tidings

  // No single event is enough: on iOS, a page returns from the back/forward cache with `pageshow` alone,
  // and after sleep, `online` may be the only one.
  // Those of the document are captured, because not all of them bubble.
  for (const type of ['pagehide', 'pageshow', 'online', 'visibilitychange', 'freeze', 'resume'])
    page.addEventListener?.(type, takeLife, { capture: true, signal: closed })
  signal?.addEventListener('abort', close, { signal: closed })
  if (signal?.aborted) close()
  else sharing.connect()
  return client
}
