import { createHistory, type Step } from './history.js'
import { TidingsError, type Notification, type Options, type Tidings } from './index.js'
import { ifAllowed, type Page } from './page.js'
import { check } from './settings.js'
import { createSharing } from './sharing.js'

const BUFFERED = 1_000 // notifications
// Events of the client itself. In the target their names begin with `tidings.`, as no row's event does.
const OWN = /^(caught-up|gap|topics|\*)$/
const CHANGE = 'tidings.change'

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
      emit(notification.event, notification)
      emit('tidings.*', notification)
    }
    if (step.type?.startsWith('tidings.')) emit(step.type, step.data)
  }

  function setState(changes: Partial<Tidings>) {
    if (closed.aborted) return
    const isNew = Object.entries(changes).some(([name, value]) => value !== client[name as keyof Tidings])
    Object.assign(client, changes)
    if (isNew) emit(CHANGE)
  }

  function emit(event: string, detail?: unknown) {
    target.dispatchEvent(new CustomEvent(event, { detail }))
  }

  function on(event: string, listener: (value: any) => void, options = {}): () => void {
    if (typeof listener !== 'function') throw new TypeError('tidings: a listener must be a function')
    const take = (event: Event) => listener((event as CustomEvent).detail)
    const name = OWN.test(event) ? `tidings.${event}` : event
    target.addEventListener(name, take, options)
    return () => target.removeEventListener(name, take)
  }

  function takeLife({ type }: Event) {
    history.save()
    if (/pagehide|freeze/.test(type)) {
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
      const done = new AbortController() // serves as the listeners' options: it has a signal
      const value = new Promise((resolve, reject) => {
        on(event, resolve, done)
        for (const end of [closed, signal]) {
          end?.addEventListener('abort', () => reject(end.reason), done)
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
            emit('tidings.gap', { reason: 'overflow' })
          }
          wake()
        }),
      ]
      try {
        for (let next; (next = buffer.shift()) || !closed.aborted; ) {
          if (next) yield next
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
